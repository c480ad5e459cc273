"""Everything that docs/extending.md adds works as the page says."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from pages import ROOT, blocks
from small_data import png, small_config
from small_model import faces, model_data

import mtdml_jax
from mtdml_jax import __main__ as command_line
from mtdml_jax.config import check_config
from mtdml_jax.data.pipeline import load_split
from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.model import Model
from mtdml_jax.loss import distances, mining
from mtdml_jax.models import backbones, classifiers
from mtdml_jax.models.choose_slices import take_slices
from mtdml_jax.models.model_file import NetworkSettings, read_model, write_model
from mtdml_jax.reports.report import class_table
from mtdml_jax.scoring import classify
from mtdml_jax.training import loop

SET, BACKBONE, MINING, DISTANCE, OF_MODELS, OF_EVALUATION, COMMAND = range(7)
REGISTRIES = (
    backbones.BACKBONES,
    classifiers.CLASSIFIERS,
    classify.CLASSIFIERS.maps[0],
    command_line.COMMANDS,
    distances.DISTANCES,
    mining.PAIR_MININGS,
)
LABELS = np.arange(12) % 3
THRESHOLDS = np.array([0.2, 0.6], np.float32)


@pytest.fixture(autouse=True)
def registries():
    """Restores the registries after each test."""
    kept = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, before in zip(REGISTRIES, kept, strict=True):
        registry.clear()
        registry.update(before)


def add(number):
    """Runs a block of the page; returns the names that it defines."""
    names = {'__name__': 'added'}
    exec(blocks('docs/extending.md', 'python')[number], names)
    return names


def embeddings():
    return np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)


def test_page_has_a_block_for_each_addition():
    assert len(blocks('docs/extending.md', 'python')) == 7


def test_data_set_is_prepared_with_its_classes_and_people(tmp_path):
    add(SET)
    for name in ('ann_glad_1', 'ann_sad_1', 'bob_sad_1'):
        path = tmp_path / 'data' / f'{name}.png'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(np.full((4, 4, 1), len(name))))
    split = load_split(small_config(tmp_path, '--config.data.name=postcards').data, 'train')
    assert list(split.class_names) == ['glad', 'sad']
    found = sorted(zip(split.file_names, split.subjects, split.labels.tolist(), strict=True))
    assert found == [
        ('ann_glad_1.png', 'ann', 0),
        ('ann_sad_1.png', 'ann', 1),
        ('bob_sad_1.png', 'bob', 1),
    ]
    (tmp_path / 'data' / 'bob_cross_1.png').write_bytes(png(np.zeros((4, 4, 1))))
    with pytest.raises(UserError, match='postcards: expected labels among glad, sad, found cross'):
        load_split(small_config(tmp_path, '--config.data.name=postcards').data, 'train')
    names = {}
    exec(blocks('docs/extending.md', 'py')[0], names)
    names['test_name_gives_expression_and_person'](tmp_path / 'other')


@pytest.mark.slow
def test_backbone_trains_and_its_model_predicts(folder, tmp_path):
    """This backbone has no BatchNorm."""
    add(BACKBONE)
    settings = {'model.backbone': 'patches', 'train.num_steps': 1, 'train.checkpoint_every': 1}
    config = small_config(folder, *(f'--config.{key}={x}' for key, x in settings.items()))
    for _ in range(2):  # The second call starts from the checkpoint.
        assert loop.train(config, tmp_path / 'run')
    network = NetworkSettings('patches', 0.0625, 'small', 12, 3, 'none', 10.0, True, 'float32')
    data = model_data(network=network)
    write_model(tmp_path / 'model', data)
    model = mtdml_jax.load(tmp_path / 'model')
    assert data.variables['params']['backbone']['Conv_0']['kernel'].shape == (4, 4, 1, 4)
    assert np.isfinite(model.predict(faces(2)).probabilities).all()
    assert take_slices(read_model(tmp_path / 'model'), [1]).settings.network.num_slices == 1


def test_mining_chooses_the_nearest_positive_and_the_nearest_negative():
    add(MINING)
    loss, _ = mtdml_jax.multi_threshold_loss(
        embeddings(), LABELS, THRESHOLDS, mining='easy_positive', dual=False
    )
    slices = np.asarray(mtdml_jax.split_slices(embeddings(), 2), np.float64)
    expected = []
    for s, threshold in enumerate(THRESHOLDS):
        for anchor, label in zip(slices, LABELS, strict=True):
            apart = [np.linalg.norm(anchor[s] - other[s]) for other in slices]
            positive = min(
                x for x, other in zip(apart, LABELS, strict=True) if other == label and x
            )
            negative = min(x for x, other in zip(apart, LABELS, strict=True) if other != label)
            expected.append(max(positive - negative + threshold, 0))
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    hard, _ = mtdml_jax.multi_threshold_loss(embeddings(), LABELS, THRESHOLDS, dual=False)
    assert hard > loss + 0.1


def test_config_accepts_added_names_and_lists_them_in_its_errors(tmp_path):
    config = small_config(tmp_path, '--config.loss.mining=easy_positive')
    with pytest.raises(UserError, match="one of hard, semihard, quantile, all, found 'easy_"):
        check_config(config)
    add(MINING)
    check_config(config)
    config.loss.mining = 'easy'
    with pytest.raises(UserError, match="quantile, easy_positive, all, found 'easy'"):
        check_config(config)


def test_distance_has_its_range_gradient_and_loss():
    add(DISTANCE)
    assert mtdml_jax.threshold_range(7, 6, 'cosine') == (0, pytest.approx(7 / 6))
    x, y = np.asarray(mtdml_jax.split_slices(embeddings()[:2], 1))[:, 0]
    value, gradient = jax.value_and_grad(distances.paired_distance)(
        x, y, distances.DISTANCES['cosine']
    )
    np.testing.assert_allclose(value, 1 - x @ y, rtol=1e-5)
    np.testing.assert_allclose(gradient, x - y, rtol=1e-5)
    # This is half of the squared distance, with half of the threshold.
    loss, aux = mtdml_jax.multi_threshold_loss(embeddings(), LABELS, THRESHOLDS, distance='cosine')
    twice, same = mtdml_jax.multi_threshold_loss(
        embeddings(), LABELS, 2 * THRESHOLDS, distance='squared_euclidean'
    )
    np.testing.assert_allclose(2 * loss, twice, rtol=1e-5)
    np.testing.assert_allclose(aux.collapse, same.collapse, rtol=1e-5)


def test_classifier_of_an_evaluation_is_scored_and_listed_in_the_report():
    add(OF_EVALUATION)
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(12, 4)) + 9 * LABELS[:, None]).astype(np.float32)
    split = SimpleNamespace(embeddings=points, logits=np.zeros((12, 0)), labels=LABELS)
    _, scores = classify.classify_and_score(split, split, 3, num_neighbors=1)
    assert list(scores) == ['knn', 'centroid', 'linear', 'discriminants']
    assert scores['discriminants']['accuracy'] == 1
    assert 'Linear discriminants' in class_table(['a', 'b', 'c'], scores)


def test_model_and_command_accept_the_classifier_of_predict(resnet4, capsys):
    add(OF_MODELS)
    model = Model(model_data())
    found = model.predict(faces(3), by='surest')
    for shares, slices in zip(found.probabilities, found.slice_probabilities, strict=True):
        np.testing.assert_array_equal(shares, slices[np.argmax(slices.max(axis=1))])
    arguments = command_line._parser().parse_args(['predict', '--model=m', '--by=surest', 'a.png'])
    assert arguments.by == 'surest'
    with pytest.raises(UserError, match="softmax, knn, centroid, surest, found 'best'"):
        model.predict(faces(1), by='best')


def test_command_runs_and_is_listed(capsys):
    add(COMMAND)
    model = ROOT / 'models' / 'fer2013.safetensors'
    assert command_line.main(['classes', f'--model={model}']) == 0
    assert capsys.readouterr().out.split()[3] == 'Happy'
    assert command_line.main(['classes', '--model=none']) == 2
    assert 'mtdml_jax: none' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line.main(['--help'])
    assert 'print the classes of a model' in capsys.readouterr().out
