# pyright: strict, reportUnknownMemberType=false
"""What no user should write: type checkers find an error in each line marked `wrong`, in no other."""

import jax
import jax.numpy as jnp
import numpy as np

import mtdml_jax as mt

X = np.ones((4, 6), np.float32)
Y = [0, 0, 1, 1]
T = (0.5, 1.0)
SLICES = np.ones((4, 2, 3), np.float32)
MEMORY = mt.empty_memory(8, 6)


def embed(images: jax.Array) -> jax.Array:
    return jnp.tanh(images)


def embed_tree(images: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return images['a'], images['a'].mean()


def names(mining: str, distance: str) -> None:
    mt.multi_threshold_loss(X, Y, T, mining='hard', distance='euclidean', reduction='mean')
    mt.multi_threshold_loss(X, Y, T, mining='hardd')  # wrong
    mt.multi_threshold_loss(X, Y, T, mining=mining)  # wrong
    mt.multi_threshold_loss(X, Y, T, mining=None)  # wrong
    mt.multi_threshold_loss(X, Y, T, distance='l1')  # wrong
    mt.multi_threshold_loss(X, Y, T, reduction='sum')  # wrong
    mt.mine_batch_hard(SLICES, Y, mining='quantile')
    mt.mine_batch_hard(SLICES, Y, mining='all')  # wrong
    mt.mine_batch_hard(SLICES, Y, mining='hardd')  # wrong
    mt.threshold_range(7, distance='squared_euclidean')
    mt.threshold_range(7, distance='l1')  # wrong
    mt.threshold_range(7, distance=distance)  # wrong


def axes() -> None:
    mt.multi_threshold_loss(X, Y, T, axis_name='data')
    mt.multi_threshold_loss(X, Y, T, axis_name=3)  # wrong
    mt.multi_threshold_loss(X, Y, T, axis_name=('data', 3))  # wrong
    mt.multi_threshold_loss(X, Y, T, axis_name=['data', 'model'])  # wrong
    mt.remember(MEMORY, X, Y, axis_name=('data', 'model'))
    mt.remember(MEMORY, X, Y, axis_name=3)  # wrong


def arrays_of_the_loss() -> None:
    mt.multi_threshold_loss(X, Y, T, mask=[True] * 4, weights=[1, 2, 3, 4], memory=MEMORY)
    mt.multi_threshold_loss(None, Y, T)  # wrong
    mt.multi_threshold_loss('abc', Y, T)  # wrong
    mt.multi_threshold_loss(X, 'abc', T)  # wrong
    mt.multi_threshold_loss(X, ['a', 'b', 'c', 'd'], T)  # wrong
    mt.multi_threshold_loss(X, [['a'], ['b']], T)  # wrong
    mt.multi_threshold_loss(X, {0, 1}, T)  # wrong
    mt.multi_threshold_loss(X, {'a': 0}, T)  # wrong
    mt.multi_threshold_loss(X, b'0011', None)  # wrong
    mt.multi_threshold_loss(X, Y, [0.5, None])  # wrong
    mt.multi_threshold_loss(X, Y)  # wrong
    mt.multi_threshold_loss(X, Y, T, mask='all')  # wrong
    mt.multi_threshold_loss(X, Y, T, weights=object())  # wrong
    mt.multi_threshold_loss(X, Y, T, memory=(X, Y))  # wrong


def numbers_of_the_loss() -> None:
    mt.multi_threshold_loss(X, Y, T, quantile=np.float32(0.5), softness=1)
    mt.multi_threshold_loss(X, Y, T, softness='soft')  # wrong
    mt.multi_threshold_loss(X, Y, T, softness=[0.1, 0.2])  # wrong
    mt.multi_threshold_loss(X, Y, T, quantile=None)  # wrong
    mt.multi_threshold_loss(X, Y, T, quantile='0.5')  # wrong
    mt.multi_threshold_loss(X, Y, T, dual='yes')  # wrong
    mt.multi_threshold_loss(X, Y, T, margin=0.5)  # wrong
    mt.multi_threshold_loss(X, Y, T, 'euclidean')  # wrong
    mt.multi_treshold_loss(X, Y, T)  # wrong


def results_of_the_loss() -> None:
    loss, aux = mt.multi_threshold_loss(X, Y, T)
    print(loss.shape, aux.spread)
    print(aux.accuracy)  # wrong
    both = mt.multi_threshold_loss(X, Y, T)
    print(both.shape)  # wrong
    first: jax.Array = mt.multi_threshold_loss(X, Y, T)  # wrong
    print(first)


def minings() -> None:
    mined = mt.mine_batch_hard(SLICES, Y, gallery=SLICES, gallery_labels=Y, rows=range(4), tile=2)
    print(mined.positive)
    print(mined.anchor)  # wrong
    mt.mine_batch_hard('abc', Y)  # wrong
    mt.mine_batch_hard(SLICES, 'abc')  # wrong
    mt.mine_batch_hard(SLICES, Y, gallery=object())  # wrong
    mt.mine_batch_hard(SLICES, Y, gallery_labels='abc')  # wrong
    mt.mine_batch_hard(SLICES, Y, gallery_mask='abc')  # wrong
    mt.mine_batch_hard(SLICES, Y, rows='abc')  # wrong
    mt.mine_batch_hard(SLICES, Y, tile='2')  # wrong
    mt.mine_batch_hard(SLICES, Y, quantile=[0.5])  # wrong


def memories() -> None:
    mt.remember(None, X, Y)  # wrong
    mt.remember(MEMORY, None, Y)  # wrong
    mt.remember(MEMORY, X, 'abc')  # wrong
    mt.remember(MEMORY, X, Y, mask=object())  # wrong
    mt.empty_memory(8)  # wrong
    mt.empty_memory('8', 6)  # wrong
    loss, memory = mt.remember(MEMORY, X, Y)  # wrong
    print(loss, memory)


def slices_and_thresholds() -> None:
    mt.split_slices(X, '4')  # wrong
    mt.split_slices(X, 2.0)  # wrong
    mt.split_slices('abc', 2)  # wrong
    mt.merge_slices(None)  # wrong
    mt.merge_slices('abc')  # wrong
    mt.threshold_range('7')  # wrong
    mt.threshold_range(7, '64')  # wrong
    mt.sample_thresholds('4', 0, 1)  # wrong
    mt.sample_thresholds(4, mt.threshold_range(7))  # wrong
    mt.sample_thresholds(4, 0, None)  # wrong


def losses_of_distances() -> None:
    mt.triplet_loss(None, 1, 1)  # wrong
    mt.triplet_loss('abc', 1, 1)  # wrong
    mt.triplet_loss(1, 1)  # wrong
    mt.triplet_loss(1, 1, 1, softness=None)  # wrong
    mt.dual_triplet_loss(1, 1, 'abc', 1)  # wrong
    mt.dual_triplet_loss(1, 1, 1, object())  # wrong
    mt.dual_triplet_loss(1, 1, 1)  # wrong


def embeddings_of_parts() -> None:
    mt.embed_in_parts(embed, X, 4, has_aux=False)
    mt.embed_in_parts(embed, X, '4')  # wrong
    mt.embed_in_parts(embed, X, 4, has_aux='yes')  # wrong
    mt.embed_in_parts(embed, None, 4)  # wrong
    mt.embed_in_parts(embed, {'a': jnp.asarray(X)}, 4)  # wrong
    mt.embed_in_parts(embed_tree, X, 4)  # wrong
    mt.embed_in_parts(X, embed, 4)  # wrong
    found: str = mt.embed_in_parts(embed, X, 4)  # wrong
    outputs, aux = mt.embed_in_parts(embed_tree, {'a': jnp.asarray(X)}, 4, has_aux=True)
    print(found, outputs.shape, aux.shape)
    print(outputs.embeddings)  # wrong


def models() -> None:
    print(mt.load('model.safetensors').class_names)
    mt.load(3)  # wrong
    mt.load(None)  # wrong
