# pyright: strict, reportUnknownMemberType=false
"""What a user may write: both type checkers accept every line, and it runs."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, assert_type, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, PartitionSpec

import mtdml_jax as mt
from mtdml_jax.loss.distances import DISTANCES, Distance
from mtdml_jax.loss.mining import PAIR_MININGS, farthest

EMBEDDINGS = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
LABELS = np.arange(8) % 3
# JAX leaves some types open, for which strict checkers blame the caller.
P = cast(Any, PartitionSpec)
grad = cast(Any, jax.grad)
jit = cast(Any, jax.jit)
devices = cast(Any, jax.devices)
VECTORS: list[list[float]] = EMBEDDINGS.tolist()
CLASSES: list[int] = LABELS.tolist()


def loss_of_arrays() -> None:
    loss, aux = mt.multi_threshold_loss(jnp.asarray(EMBEDDINGS), jnp.asarray(LABELS), jnp.ones(3))
    assert_type(loss, jax.Array)
    assert_type(aux, mt.LossAux)
    total: jax.Array = loss + aux.loss.sum() + aux.spread[0] + aux.num_valid.max()
    found: tuple[jax.Array, mt.LossAux] = mt.multi_threshold_loss(EMBEDDINGS, LABELS, np.ones(2))
    print(total, float(found[0]), found[1]._asdict())


def loss_of_lists_and_tuples() -> None:
    loss: jax.Array
    aux: mt.LossAux
    loss, aux = mt.multi_threshold_loss(VECTORS, CLASSES, [0.5, 1.0])
    loss, aux = mt.multi_threshold_loss(tuple(VECTORS), tuple(CLASSES), (0.5, 1))
    loss, aux = mt.multi_threshold_loss(
        [tuple(x) for x in VECTORS], range(8), (np.float32(0.5), jnp.asarray(1.0))
    )
    loss, aux = mt.multi_threshold_loss(
        list(EMBEDDINGS), [x > 0 for x in CLASSES], thresholds=[jnp.asarray(0.5)]
    )
    loss, aux = mt.multi_threshold_loss([*jnp.asarray(EMBEDDINGS)], list(LABELS), list(np.ones(3)))
    print(loss, aux.collapse)


def loss_with_options(memory: mt.Memory | None, axis_name: str | None = None) -> None:
    loss, aux = mt.multi_threshold_loss(
        EMBEDDINGS,
        LABELS,
        [0.5, 1.0],
        distance='squared_euclidean',
        dual=False,
        mining='quantile',
        quantile=np.float32(0.5),
        softness=jnp.asarray(0.1),
        mask=[True] * 8,
        weights=(1, 0.5, np.float32(2), 1, 1, 1, 1, 1),
        memory=memory,
        axis_name=axis_name,
        reduction='active_mean',
    )
    loss, aux = mt.multi_threshold_loss(
        EMBEDDINGS, LABELS, [1], mining='all', softness=1, reduction='none', mask=LABELS > 0
    )
    loss, aux = mt.multi_threshold_loss(
        EMBEDDINGS,
        LABELS,
        [1],
        mining='semihard',
        quantile=jnp.asarray(0.5),
        mask=None,
        weights=None,
    )
    print(loss, aux.active_share, aux.incomplete_share, aux.positive_distance)


@jax.jit
def step(params: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, mt.LossAux]:
    def loss_of(params: jax.Array) -> tuple[jax.Array, mt.LossAux]:
        return mt.multi_threshold_loss(images @ params, labels, [0.5, 1.0])

    gradient, aux = grad(loss_of, has_aux=True)(params)
    return gradient, aux


def loss_on_devices() -> None:
    device, names = devices()[:1], ('data', 'model')
    line, grid = Mesh(np.array(device), names[:1]), Mesh(np.array([device]), names)

    @partial(jax.shard_map, mesh=grid, in_specs=(P(names), P(names)), out_specs=P())
    def loss_of_both(embeddings: jax.Array, labels: jax.Array) -> jax.Array:
        return mt.multi_threshold_loss(embeddings, labels, [1.0], axis_name=('data', 'model'))[0]

    @partial(jax.shard_map, mesh=line, in_specs=(P('data'), P('data')), out_specs=P())
    def loss_and_memory(embeddings: jax.Array, labels: jax.Array) -> tuple[jax.Array, mt.Memory]:
        loss, _ = mt.multi_threshold_loss(embeddings, labels, [1.0], axis_name='data')
        memory = mt.remember(mt.empty_memory(8, 6), embeddings, labels, axis_name='data')
        return loss, mt.remember(memory, embeddings, labels, axis_name=('data',))

    embeddings, labels = jnp.asarray(EMBEDDINGS), jnp.asarray(LABELS)
    both: jax.Array = loss_of_both(embeddings, labels)
    print(both, loss_and_memory(embeddings, labels))


def memory_of_a_scan() -> mt.Memory:
    def scanned(
        memory: mt.Memory, batch: tuple[jax.Array, jax.Array]
    ) -> tuple[mt.Memory, jax.Array]:
        embeddings, labels = batch
        loss, _ = mt.multi_threshold_loss(embeddings, labels, [0.5, 1.0], memory=memory)
        return mt.remember(memory, embeddings, labels), loss

    batches = jnp.asarray(EMBEDDINGS).reshape(2, 4, 6), jnp.asarray(LABELS).reshape(2, 4)
    memory, losses = jax.lax.scan(scanned, mt.empty_memory(8, 6), batches)
    assert_type(memory, mt.Memory)
    assert_type(losses, jax.Array)
    memory = mt.remember(memory, VECTORS, CLASSES, mask=[x > 0 for x in CLASSES])
    filled: jax.Array = memory.filled
    print(losses, filled, memory.next, memory.embeddings.shape, memory.labels)
    return memory


def triplets() -> None:
    mined = mt.mine_batch_hard(VECTORS, CLASSES)
    assert_type(mined, mt.Triplets)
    slices = mt.split_slices(VECTORS, 2)
    assert_type(slices, jax.Array)
    of_lists: list[list[list[float]]] = slices.tolist()
    found: mt.Triplets = mt.mine_batch_hard(
        of_lists,
        tuple(CLASSES),
        mining='quantile',
        quantile=np.float32(0.5),
        gallery=slices,
        gallery_labels=LABELS,
        gallery_mask=[True] * 8,
        rows=range(8),
        mask=(True,) * 8,
        tile=4,
    )
    joined: jax.Array = mt.merge_slices(of_lists)
    same: list[jax.Array] = [mt.merge_slices(slices), mt.merge_slices(np.asarray(slices))]
    split: list[jax.Array] = [mt.split_slices(EMBEDDINGS, 3), mt.split_slices(joined, 3)]
    print(found.positive, mined.negative, mined.valid, same, split)


def losses_of_distances() -> None:
    loss: jax.Array = mt.triplet_loss([0.5, 1.0], (1, 2), 0.5)
    loss = mt.triplet_loss(0.5, np.float32(1), jnp.asarray(0.5), softness=np.float32(0.1))
    dual: jax.Array = mt.dual_triplet_loss([[0.5], [1.0]], np.ones(2), jnp.ones(2), [0.1, 1])
    dual = mt.dual_triplet_loss(0.5, [[1, 2], (3, 4)], [[1, 2]], 0.5, softness=jnp.asarray(0.1))
    slope: jax.Array = grad(mt.triplet_loss)(0.5, 0.25, 0.5)
    print(loss, dual, slope, jax.vmap(mt.triplet_loss)(jnp.ones(2), jnp.ones(2), jnp.ones(2)))


def thresholds() -> None:
    low, high = mt.threshold_range(7, 64, distance='squared_euclidean')
    assert_type(low, float)
    assert_type(high, float)
    found: jax.Array = mt.sample_thresholds(8, *mt.threshold_range(7))
    print(found, mt.sample_thresholds(2, low=0, high=1), mt.threshold_range(7, None, 'euclidean'))


class Batch(NamedTuple):
    images: jax.Array
    sizes: jax.Array


def embed(images: jax.Array) -> jax.Array:
    return jnp.tanh(images)


def embed_numbers(
    images: jax.Array | npt.NDArray[np.float32],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    return jnp.tanh(images), {'mean': jnp.mean(images)}


def embed_batch(batch: Batch) -> jax.Array:
    return batch.images * batch.sizes[:, None]


def embed_tree(tree: Mapping[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    return {'embeddings': tree['images']}, tree['images'].mean()


def embeddings_of_parts() -> None:
    images, ones = jnp.asarray(EMBEDDINGS), jnp.ones(8)
    assert_type(mt.embed_in_parts(embed, images, 4), jax.Array)
    assert_type(mt.embed_in_parts(embed, EMBEDDINGS, 4), jax.Array)
    assert_type(mt.embed_in_parts(lambda x: jnp.tanh(x @ x.T), images, 4), jax.Array)
    assert_type(mt.embed_in_parts(lambda x: x * 2, images, 4), jax.Array)
    assert_type(mt.embed_in_parts(lambda x: jnp.tanh(x * 2), EMBEDDINGS, 4), jax.Array)
    assert_type(mt.embed_in_parts(embed_batch, Batch(images, ones), part_size=4), jax.Array)
    assert_type(mt.embed_in_parts(lambda x: x.images * 2, Batch(images, ones), 4), jax.Array)
    assert_type(mt.embed_in_parts(lambda x: x['a'] * 2, {'a': images}, 4), jax.Array)
    assert_type(mt.embed_in_parts(lambda x: x[0] * x[1], (images, images), 4), jax.Array)
    outputs, aux = mt.embed_in_parts(embed_numbers, EMBEDDINGS, 4, has_aux=True)
    assert_type(outputs, jax.Array)
    assert_type(aux, dict[str, jax.Array])
    tree, mean = mt.embed_in_parts(embed_tree, {'images': images}, 4, has_aux=True)
    assert_type(tree, dict[str, jax.Array])
    assert_type(mean, jax.Array)
    as_images: Any = images
    print(mt.embed_in_parts(cast(Any, embed), as_images, 4))

    def loss_of(scale: jax.Array) -> jax.Array:
        embeddings = mt.embed_in_parts(lambda x: embed(x * scale), images, 4)
        return mt.multi_threshold_loss(embeddings, LABELS, [0.5, 1.0])[0]

    gradient: jax.Array = jit(grad(loss_of))(jnp.asarray(2.0))
    print(gradient)


def nearest_positive(
    distances: jax.Array, is_positive: jax.Array, is_negative: jax.Array, quantile: jax.Array
) -> mt.Triplets:
    positive, _, has_positive = farthest(-distances, is_positive)
    negative, _, has_negative = farthest(-distances, is_negative)
    return mt.Triplets(positive, negative, has_positive & has_negative)


def cosine(squares: Any, xp: Any) -> Any:
    return squares / 2


def names_of_my_own() -> None:
    PAIR_MININGS['nearest_positive'] = nearest_positive
    DISTANCES['cosine'] = Distance(cosine)
    mining, distance = cast(Any, 'nearest_positive'), cast(Any, 'cosine')
    thresholds = mt.sample_thresholds(2, *mt.threshold_range(3, distance=distance))
    loss, _ = mt.multi_threshold_loss(
        EMBEDDINGS, LABELS, thresholds, mining=mining, distance=distance
    )
    print(loss, mt.mine_batch_hard(EMBEDDINGS, LABELS, mining=cast(Any, 'nearest_positive')))


def names_of_a_model(path: Path) -> list[str]:
    model = mt.load(path)
    print(mt.load(str(path)).class_names, mt.__version__.split('.'))
    return [str(x) for x in model.predict('face.png').names]


if __name__ == '__main__':
    loss_of_arrays()
    loss_of_lists_and_tuples()
    loss_with_options(None)
    print(cast(Any, step)(jnp.ones((6, 4)), jnp.asarray(EMBEDDINGS), jnp.asarray(LABELS)))
    loss_on_devices()
    loss_with_options(memory_of_a_scan())
    triplets()
    losses_of_distances()
    thresholds()
    embeddings_of_parts()
    names_of_my_own()
