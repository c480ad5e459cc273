"""Embeddings of whole splits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtdml_jax.data.pipeline import Split, eval_batches
from mtdml_jax.inference.embedding import make_look
from mtdml_jax.models import Network
from mtdml_jax.slicing import merge_slices


class EmbeddedSplit(NamedTuple):
    """A split as the network sees it.

    Attributes:
      embeddings: unit slices side by side, of length 1 as a whole, float32 [N, E].
      logits: class scores, the mean of the slices', float32 [N, C]; [N, 0] if no head was trained
        (softmax_weight 0).
      labels: classes, int32 [N].
    """

    embeddings: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


def make_embedder(network: Network, config) -> Callable[[Any, Split], EmbeddedSplit]:
    """A function (variables, split) -> `EmbeddedSplit`, compiled once, over this host's devices.

    Args:
      network: the network.
      config: the whole config.
    """
    mesh = Mesh(np.array(jax.local_devices()), 'batch')
    spread = NamedSharding(mesh, PartitionSpec('batch'))
    replicated = NamedSharding(mesh, PartitionSpec())
    batch_size = -(-config.eval.batch_size // mesh.size) * mesh.size

    look = make_look(network, config.eval.flip)

    @jax.jit
    def embed(variables, images):
        seen = look(variables, images)
        logits = seen.logits.mean(axis=1)
        return merge_slices(seen.slices), logits if config.loss.softmax_weight else logits[:, :0]

    def embed_split(variables, split):
        variables = jax.device_put(variables, replicated)
        embeddings, logits = [], []
        for batch in eval_batches(split, config.data, batch_size):
            found = embed(variables, jax.device_put(batch['image'], spread))
            embedding, logit = (np.asarray(x)[batch['mask']] for x in found)
            embeddings.append(embedding)
            logits.append(logit)
        return EmbeddedSplit(np.concatenate(embeddings), np.concatenate(logits), split.labels)

    return embed_split
