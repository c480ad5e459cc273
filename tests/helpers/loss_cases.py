"""Computes the multi-threshold loss of small batches, for its tests."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import reference

from mtdml_jax import multi_threshold_loss

LABELS = np.array([0, 1, 0, 2, 1, 0, 3, 2], np.int32)
THRESHOLDS = np.array([0.1, 0.6, 1.1])
EVERYONE = np.ones(8, bool)
DEFAULTS = {'distance': 'euclidean', 'dual': True, 'reduction': 'mean', 'mining': 'hard'}


def random_embeddings(seed=0):
    """Returns loose clusters [8, 6], not normalized. Some triplets violate some of the thresholds."""
    rng = np.random.default_rng(seed)
    angles = np.pi / 2 * LABELS[:, None] + rng.normal(size=(8, 3)) * 0.4
    return (rng.uniform(0.5, 2.0, size=(8, 3)) * np.exp(1j * angles)).view(float)


def loss_aux_gradient(embeddings, labels, thresholds, mask, **options):
    def scalar(e):
        loss, aux = multi_threshold_loss(e, labels, thresholds, mask=mask, **options)
        return jnp.sum(loss), (loss, aux)

    gradient, (loss, aux) = jax.grad(scalar, has_aux=True)(embeddings)
    return loss, aux, gradient


compiled = jax.jit(
    loss_aux_gradient, static_argnames=('distance', 'dual', 'reduction', 'mining', 'softness')
)


def loss_and_gradient(embeddings, labels=LABELS, thresholds=THRESHOLDS, mask=EVERYONE, **options):
    """Returns (loss, aux, gradient by the embeddings) in float64; without reduction, that of the sum."""
    # With the defaults spelt out, all calls share one compilation.
    options = DEFAULTS | options
    with jax.enable_x64(True):
        found = compiled(embeddings, labels, thresholds, mask, **options)
    return jax.tree.map(np.asarray, found)


def assert_aux_matches(aux, terms, **tolerance):
    chex.assert_trees_all_close(aux._asdict(), reference.expected_aux(terms), **tolerance)
