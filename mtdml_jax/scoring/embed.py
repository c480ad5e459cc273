"""Embeds whole splits, using all devices of all processes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mtdml_jax.data.pipeline import Split, eval_batches
from mtdml_jax.loss.slicing import merge_slices
from mtdml_jax.models import Network
from mtdml_jax.models.forward import make_forward


class EmbeddedSplit(NamedTuple):
    """The network's outputs for a split.

    Attributes:
      embeddings: concatenated slices of equal length, scaled to length 1 together, float32 [N, E].
      logits: class scores averaged over the slices, float32 [N, C]; [N, 0] if no head was trained
        (softmax_weight 0).
      labels: classes, int32 [N].
    """

    embeddings: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


def make_embedder(network: Network, config: ConfigDict) -> Callable[[Any, Split], EmbeddedSplit]:
    """Makes a function (variables, split) -> `EmbeddedSplit`, which is compiled once.

    If there are several processes, all of them must call the function. Each process embeds its share of
    the rows on its own devices, and receives the results of all rows.

    Args:
      network: the network.
      config: the whole config.
    """
    mesh = Mesh(np.array(jax.local_devices()), 'batch')
    spread = NamedSharding(mesh, PartitionSpec('batch'))
    replicated = NamedSharding(mesh, PartitionSpec())
    batch_size = -(-config.eval.batch_size // mesh.size) * mesh.size

    has_head = config.loss.softmax_weight > 0

    def embed_split(variables, split):
        variables = jax.device_put(variables, replicated)
        embeddings, logits = [], []
        for batch in eval_batches(share_of_rows(split), config.data, batch_size):
            images = jax.device_put(batch['image'], spread)
            found = _embed(network, config.eval.flip, has_head, variables, images)
            embedding, logit = (np.asarray(x)[batch['mask']] for x in found)
            embeddings.append(embedding)
            logits.append(logit)
        whole, scores = (gather_rows(np.concatenate(x), split) for x in (embeddings, logits))
        return EmbeddedSplit(whole, scores, split.labels)

    return embed_split


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _embed(network, flip, has_head, variables, images):
    """Returns (embeddings, logits) of images; all embedders of a network share the compiled program."""
    outputs = make_forward(network, flip)(variables, images)
    logits = outputs.logits.mean(axis=1)
    return merge_slices(outputs.slices), logits if has_head else logits[:, :0]


def share_of_rows(split: Split) -> Split:
    """Returns every n-th row for this one of n processes; repeats the last row to make shares equal."""
    count, processes = len(split.labels), jax.process_count()
    if processes == 1:
        return split
    rows = np.arange(-(-count // processes)) * processes + jax.process_index()
    return split.take(np.minimum(rows, count - 1))


def gather_rows(share: np.ndarray, split: Split) -> np.ndarray:
    """Joins the shares [N / processes, ...] of all processes into the rows of a split, in its order."""
    if jax.process_count() == 1:
        return share
    shares = multihost_utils.process_allgather(share)
    processes, each = shares.shape[:2]
    rows = np.swapaxes(shares, 0, 1).reshape(processes * each, *share.shape[1:])
    return rows[: len(split.labels)]
