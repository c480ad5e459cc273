"""README and docs/: their examples run, their links lead somewhere, and their sentences are readable."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from pages import ROOT, blocks, text_of

from mtdml_jax.__main__ import _parser
from mtdml_jax.config import load_config

PAGES = [
    *(
        ROOT / name
        for name in ('README.md', 'CONTRIBUTING.md', 'models/README.md', 'experiments/README.md')
    ),
    *sorted((ROOT / 'docs').rglob('*.md')),
]
PAGES = [page.relative_to(ROOT).as_posix() for page in PAGES if page.exists()]
NUMBER = re.compile(r'(?<![\w.,-])[+−-]?\d[\d,.]*(?: ?[%×])?(?![\w-])')


def sentences(text):
    """Yields the sentences of the prose, without code, tables, headings, pictures or addresses."""
    text = re.sub(r'^```.*?^```|<!--.*?-->', '', text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r'^(?:[|#].*|    .*)$', '\n', text, flags=re.MULTILINE)
    text = re.sub(r'!\[[^\]]*\]\([^)]*\)', '', text)
    text = re.sub(r'`[^`]*`|(?<=\])\([^)]*\)', '', text)
    # The end of a list item or paragraph also ends a sentence.
    for paragraph in re.split(r'\n\s*\n|\n\s*[-*] ', text):
        yield from re.split(r'(?<=[.;:?!])\s+', ' '.join(paragraph.split()))


def commands(page):
    """Yields the arguments of each mtdml command in a page's shell blocks."""
    for block in blocks(page, 'sh'):
        for line in block.replace('\\\n', ' ').splitlines():
            found = re.search(r'(?:^|["\s])(?:mtdml|python -m mtdml_jax) (.*?)(?:"|$)', line)
            if found:
                yield shlex.split(found[1], comments=True)


def test_example_of_the_loss_tells_digits_apart_and_keeps_only_the_low_thresholds():
    names = {}
    exec(blocks('docs/loss.md', 'python')[0], names)
    assert names['accuracy'] > 0.95
    # After one step the accuracy is as good (98 %). The loss, which starts at 0.99, shows whether
    # training had an effect. The active shares show whether every slice has its own threshold.
    assert names['loss'] < 0.1
    active = np.asarray(names['aux'].active_share)
    assert active.shape == (8,)
    assert active[:4].max() < 0.1
    assert active[-1] > 0.9


def test_training_on_a_mesh_has_the_parameters_of_one_device_after_ten_steps():
    names = {}
    exec(blocks('docs/loss.md', 'python')[1], names)
    one_device = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
    expected, loss = names['train'](one_device)
    chex.assert_trees_all_close(names['parameters'], expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(names['loss'], loss, rtol=1e-5)
    start = nnx.state(names['Network'](nnx.Rngs(0)))
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), expected, start)
    assert min(jax.tree.leaves(moved)) > 0.01


def test_recipe_for_several_devices_gives_the_gradient_of_one():
    names = {}
    exec(blocks('docs/loss.md', 'python')[2], names)
    params, images, labels = (names[name] for name in ('params', 'images', 'labels'))
    mesh, devices = names['mesh'], names['devices']
    by_rows = jax.device_put((images, labels), NamedSharding(mesh, PartitionSpec('data')))
    split = images.reshape(devices, 6, 10), labels.reshape(devices, 6)
    gradient = jax.jit(jax.grad(names['loss_of']))
    # Without a classifier, the local term has no gradient by the embeddings, and the loss is alone.
    for classifier in (params['classify'], jnp.zeros((16, 3))):
        params['classify'] = classifier
        expected = gradient(params, images, labels)['embed']
        assert np.abs(expected).max() > 0.01
        everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        for name in ('by_shard_map', 'without_check', 'by_jit'):
            found = names[name](everywhere, *by_rows)['embed']
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6, err_msg=name)
        found = names['by_pmap'](params, *split)['embed']
        np.testing.assert_allclose(found, np.tile(expected, (devices, 1, 1)), rtol=0, atol=2e-6)


def test_examples_of_parts_and_memory_give_gradients_and_remember():
    parts, memory = ({}, {})
    for block, names in zip(blocks('docs/loss.md', 'python')[3:], (parts, memory), strict=True):
        exec(block, names)
    assert np.abs(parts['gradient']).max() > 0
    assert memory['memory'].filled.sum() == 36


def test_step_of_the_readme_lowers_the_loss():
    names = {
        'network': SimpleNamespace(apply=lambda params, x: x @ params),
        'optimizer': optax.adam(1e-2),
    }
    exec(blocks('README.md', 'python')[1], names)
    labels = jnp.arange(28) % 7
    images = jax.random.normal(jax.random.key(0), (28, 20)) + 3 * jax.nn.one_hot(labels, 20)
    params = jax.random.normal(jax.random.key(1), (20, 512))
    state, losses = names['optimizer'].init(params), []
    for _ in range(20):
        params, state, loss, active = names['train_step'](params, state, images, labels)
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]
    assert active.shape == (8,)


def test_examples_use_the_model_of_the_repository(tmp_path, monkeypatch, capsys):
    (tmp_path / 'models').symlink_to(ROOT / 'models')
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks('docs/use.md', 'python')[0], names)
    exec(blocks('README.md', 'python')[0], {})
    expressions, distances, enrolled, shown = capsys.readouterr().out.splitlines()
    assert expressions == "['Neutral', 'Happy']"  # Collins smiles.
    assert shown == "['Happy']"
    assert 0.1 < float(distances.strip('[]')) < 2
    assert enrolled == "['stern']"
    assert names['found'].slice_probabilities.shape == (2, 8, 7)
    assert Path('mine.safetensors').stat().st_size > 1e6


def test_config_of_the_docs_overrides_another(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(blocks('docs/train.md', 'python')[0])
    config = load_config(str(path), [])
    assert (config.model.num_slices, config.data.name) == (4, 'folder')


@pytest.mark.parametrize('page', [page for page in PAGES if [*commands(page)]])
def test_commands_of_a_page_are_understood(page):
    for argv in commands(page):
        arguments, overrides = _parser().parse_known_args(argv)
        if getattr(arguments, 'config', None):
            load_config(arguments.config, overrides)
        else:
            assert all(x.startswith('--config.') for x in overrides)


@pytest.mark.parametrize('page', PAGES)
def test_links_of_a_page_lead_somewhere(page):
    targets = re.findall(r'\]\((?!\w+:)([^)#]+)', text_of(page))
    assert [x for x in targets if not (ROOT / page).parent.joinpath(x).exists()] == []


@pytest.mark.parametrize('page', PAGES)
def test_no_sentence_has_more_than_two_numbers(page):
    # A value with its interval counts as one.
    crowded = [
        sentence
        for sentence in sentences(text_of(page))
        if len(NUMBER.findall(re.sub(r' ?±\S+|\([^()]* to [^()]*\)', '', sentence))) > 2
    ]
    assert crowded == []
