"""The method on arrays that lie on a mesh, against the same arrays on one device, in float64."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_cases import CASES, IN_SHARD_MAP, PAGE, TABLE, Case, row, work

import mtdml_jax as mt

RNG = np.random.default_rng(3)
BATCH, SIZE, SLICES = 16, 32, 4
EMBEDDINGS, LABELS = RNG.normal(size=(BATCH, SIZE)), RNG.integers(0, 3, BATCH).astype(np.int32)
MASK, WEIGHTS = np.arange(BATCH) % 5 > 0, RNG.uniform(0.2, 2.0, BATCH)
THRESHOLDS = np.linspace(0.2, 1.3, SLICES)
OLD = RNG.normal(size=(10, SIZE)), RNG.integers(0, 3, 10).astype(np.int32)
EVERYTHING = {'mask': MASK, 'weights': WEIGHTS, 'memory': OLD}
OPTIONS = {
    'hard': EVERYTHING,
    'semihard': {'mining': 'semihard', 'reduction': 'none', 'mask': MASK},
    'quantile': {'mining': 'quantile', 'reduction': 'active_mean', 'memory': OLD},
    'all': {'mining': 'all', 'weights': WEIGHTS, 'softness': 0.3},
}
DATA = Case('Explicit', '8', P('data'))
BOTH = Case('Explicit', '4 x 2', P('data', 'model'))
COLUMNS_OF_AUTO = Case('Auto', '4 x 2', P(None, 'model'))
QUICK = {
    *((DATA, name) for name in OPTIONS),
    (BOTH, 'hard'),
    (Case('Explicit', '1', P('data')), 'hard'),
    (COLUMNS_OF_AUTO, 'hard'),
    (IN_SHARD_MAP[1], 'hard'),
}


def some_slow(case, *quick):
    """Returns the parameters of a test, which are for the slow tests unless they are quick."""
    marks = () if case in quick else pytest.mark.slow
    return pytest.param(*([case] if isinstance(case, Case) else case), marks=marks, id=str(case))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def memory_of(embeddings, labels):
    return mt.remember(mt.empty_memory(12, SIZE), embeddings, labels)


def loss_and_gradient(embeddings, labels, rows, wrap=lambda loss: loss, **options):
    """Returns ((loss, aux), gradient) of the loss, which a case may wrap."""

    def loss(embeddings, labels, rows, **axis_name):
        return mt.multi_threshold_loss(
            embeddings, labels, THRESHOLDS, **axis_name, **options, **rows
        )

    def loss_of(embeddings):
        found = wrap(loss)(embeddings, labels, rows)
        return jnp.sum(found[0]), found

    gradient, found = jax.grad(loss_of, has_aux=True)(embeddings)
    return found, gradient


def split_options(name):
    """Returns (options of rows, other options)."""
    options = dict(OPTIONS[name])
    rows = {key: options.pop(key) for key in ('mask', 'weights') if key in options}
    if 'memory' in options:
        options['memory'] = memory_of(*options['memory'])
    return rows, options


@cache
def on_one_device(name):
    rows, options = split_options(name)
    return jax.device_get(jax.jit(partial(loss_and_gradient, **options))(EMBEDDINGS, LABELS, rows))


@pytest.mark.parametrize(
    ('case', 'name'),
    [
        some_slow((case, name), *QUICK)
        for case in (*CASES, *IN_SHARD_MAP)
        for name in OPTIONS
        # A mesh is found alike with Auto axes and on one device, and results by rows need a split mesh.
        if (case.kind == 'Explicit' and case.mesh != '1') or name in ('hard', 'all')
        if not (case.in_shard_map and name == 'semihard')
    ],
)
def test_loss_aux_and_gradient_are_those_of_one_device(case, name):
    rows, options = split_options(name)
    embeddings, labels, *found = case.place(EMBEDDINGS, LABELS, *rows.values())
    rows = dict(zip(rows, found, strict=True))
    found, gradient = jax.jit(partial(loss_and_gradient, wrap=case.wrap, **options))(
        embeddings, labels, rows
    )
    chex.assert_trees_all_close(
        jax.device_get((found, gradient)), on_one_device(name), rtol=0, atol=1e-12
    )
    if case.kind == 'Explicit':
        assert gradient.sharding.is_equivalent_to(embeddings.sharding, 2)


@pytest.mark.slow
@pytest.mark.parametrize('case', [DATA, BOTH, COLUMNS_OF_AUTO], ids=str)
def test_loss_is_called_without_jit_and_its_gradient_in_a_mesh_context(case):
    rows, options = split_options('all')
    embeddings, labels, weights = case.place(EMBEDDINGS, LABELS, rows['weights'])
    (expected, _), _ = on_one_device('all')
    rows = {'weights': weights}
    loss, _ = mt.multi_threshold_loss(embeddings, labels, THRESHOLDS, **options, **rows)
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-12)
    with jax.set_mesh(case.make_mesh()):
        found = loss_and_gradient(embeddings, labels, rows, **options)
    chex.assert_trees_all_close(found, on_one_device('all'), rtol=0, atol=1e-12)


def test_rows_that_do_not_go_round_the_devices_are_not_split():
    """14 rows on 4 x 2 devices are split over 2 of them, the others repeat the work."""
    loss = jax.jit(lambda *arrays: mt.multi_threshold_loss(*arrays, THRESHOLDS)[0])
    rows = EMBEDDINGS[:14], LABELS[:14]
    placed = Case('Explicit', '4 x 2', P(None, 'data')).place(*rows)
    np.testing.assert_allclose(loss(*placed), loss(*rows), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_axes_of_both_types_in_one_mesh():
    mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto, AxisType.Explicit))
    placed = jax.device_put(EMBEDDINGS, NamedSharding(mesh, P('a', 'b')))
    found = jax.jit(lambda e: loss_and_gradient(e, LABELS, {}))(placed)
    expected = jax.jit(lambda e: loss_and_gradient(e, LABELS, {}))(EMBEDDINGS)
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('case', [some_slow(x, BOTH) for x in CASES])
def test_slices_triplets_memory_and_micro_batches_are_those_of_one_device(case):
    def everything(embeddings, labels, mask, memory):
        slices = mt.split_slices(embeddings, SLICES)
        gallery = {'gallery': slices[:, 1], 'gallery_labels': labels, 'gallery_mask': mask}
        parts = [
            mt.embed_in_parts(lambda x: (jnp.tanh(x), jnp.mean(x)), embeddings, size, has_aux=True)
            for size in (4, 8)
        ]
        return (
            slices,
            mt.merge_slices(slices),
            mt.mine_batch_hard(slices, labels, mask=mask),
            mt.mine_batch_hard(slices[:, :3], labels, mining='quantile'),
            mt.mine_batch_hard(slices[:, 0], labels, **gallery),
            mt.remember(memory, embeddings, labels, mask=mask),
            parts,
            mt.dual_triplet_loss(embeddings[:, 0], embeddings[:, 1], embeddings[:, 2], 0.2),
            mt.triplet_loss(embeddings[:, 0], embeddings[:, 1], 0.2, softness=0.1),
        )

    arrays = case.place(EMBEDDINGS, LABELS, MASK)
    if case.spec[1:] != P():  # Indices need columns that are whole.
        arrays = (
            jax.device_put(arrays[0], NamedSharding(case.make_mesh(), P('data'))),
            *arrays[1:],
        )
    memory = mt.empty_memory(20, SIZE)
    found = jax.jit(everything)(*arrays, memory)
    expected = jax.jit(everything)(EMBEDDINGS, LABELS, MASK, memory)
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-12)


def test_slices_stay_where_their_columns_are():
    embeddings, _ = BOTH.place(EMBEDDINGS, LABELS)
    slices = mt.split_slices(embeddings, SLICES)
    assert slices.sharding.spec == P('data', 'model', None)
    assert mt.merge_slices(slices).sharding.spec == P('data', 'model')
    np.testing.assert_allclose(slices, mt.split_slices(EMBEDDINGS, SLICES), rtol=0, atol=1e-15)


@pytest.mark.parametrize('way', ['plain jit', 'check_vma', 'no check_vma'])
def test_memory_is_the_carry_of_a_scan_on_all_devices(way):
    def scanned(memory, embeddings, labels, axis_name=None):
        def step(memory, _):
            options = {'memory': memory, 'axis_name': axis_name}
            loss, _ = mt.multi_threshold_loss(embeddings, labels, THRESHOLDS, **options)
            return mt.remember(memory, embeddings, labels, axis_name=axis_name), loss

        return jax.lax.scan(step, memory, None, length=2)

    memory = mt.empty_memory(20, SIZE)
    arrays = DATA.place(EMBEDDINGS, LABELS)
    expected = jax.jit(scanned)(memory, EMBEDDINGS, LABELS)
    mapped = scanned
    if way != 'plain jit':
        mapped = jax.shard_map(
            partial(scanned, axis_name='data'),
            mesh=DATA.make_mesh(),
            in_specs=(P(), P('data'), P('data')),
            out_specs=P(),
            check_vma=way == 'check_vma',
        )
    found = jax.jit(mapped)(jax.device_put(memory, NamedSharding(DATA.make_mesh(), P())), *arrays)
    chex.assert_trees_all_close(found, expected, rtol=0, atol=1e-12)


def test_plain_jit_splits_work_and_moves_no_more_than_a_shard_map_with_axis_name():
    products, moved = work(IN_SHARD_MAP[0])
    whole = 2 * 8 * 1024**2 * 64
    assert products == whole / 8
    # The slices of 1,024 rows, forth and back; each device gets an eighth of them.
    assert moved == {'all-to-all': 2 * 1024 * 512 * 4 / 8, 'all-gather': 0}
    assert work(DATA) == (products, moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    'case', [IN_SHARD_MAP[1], BOTH, Case('Auto', '8', P(None, 'data'))], ids=str
)
def test_table_in_the_docs_is_what_is_counted(case):
    page = PAGE.read_text().split('<!-- table: meshes -->\n')[1].split('\n<!-- end of table -->')[0]
    with jax.enable_x64(False):
        assert page.splitlines()[2 + TABLE.index(case)] == row(case)
    assert len(page.splitlines()) == 2 + len(TABLE)
