"""The terms of one slice, by hand, and mapped over slices and thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtdml_jax.loss.distances import DISTANCES
from mtdml_jax.loss.mining import Triplets
from mtdml_jax.loss.triplets import mined_terms

ANCHORS = jnp.array([[0.0, 0.0], [4.0, 0.0], [9.0, 9.0]])
GALLERY = jnp.array([[0.0, 3.0], [4.0, 3.0], [0.0, 4.0]])
# The first anchor has d_ap 3, d_an 5 and d_pn 4, the second 5, 3 and 4. The third has no triplet.
TRIPLETS = Triplets(jnp.array([0, 0, 0]), jnp.array([1, 1, 1]), jnp.array([True, True, False]))
OPTIONS = {'distance': DISTANCES['euclidean'], 'dual': True, 'softness': None}


# Sides of the first anchor: 3 - 5 + t and 3 - 4 + t. Sides of the second: 5 - 3 + t and 5 - 4 + t.
@pytest.mark.parametrize(
    ('threshold', 'dual', 'loss', 'active', 'incomplete'),
    [
        (0.5, True, [0.0, 2.0, 0], [0, 1, 0], [0, 0, 0]),
        (1.5, True, [0.25, 3.0, 0], [1, 1, 0], [1, 0, 0]),
        (1.5, False, [0.0, 3.5, 0], [0, 1, 0], [1, 0, 0]),
        (2.5, True, [1.0, 4.0, 0], [1, 1, 0], [0, 0, 0]),
    ],
)
def test_terms_of_a_slice_are_those_by_hand(threshold, dual, loss, active, incomplete):
    terms = mined_terms(ANCHORS, GALLERY, TRIPLETS, threshold, **OPTIONS | {'dual': dual})
    np.testing.assert_allclose(terms.loss, loss)
    np.testing.assert_array_equal(terms.active, active)
    np.testing.assert_array_equal(terms.incomplete, incomplete)
    np.testing.assert_array_equal(terms.positive_distance, [3, 5, 0])
    np.testing.assert_array_equal(terms.negative_distance, [5, 3, 0])
    np.testing.assert_array_equal(terms.triplets, [1, 1, 0])


def test_vmap_gives_every_slice_its_own_triplets_and_threshold():
    # The second slice has other triplets: its first anchor has d_ap 4, d_an 3 and d_pn 1.
    others = Triplets(jnp.array([2, 2, 2]), jnp.array([0, 0, 0]), jnp.array([True, False, False]))
    both = jax.tree.map(lambda *x: jnp.stack(x), TRIPLETS, others)
    vectors = (jnp.stack([x, x]) for x in (ANCHORS, GALLERY))

    def slice_terms(*arrays):
        return mined_terms(*arrays, **OPTIONS)

    terms = jax.vmap(slice_terms)(*vectors, both, jnp.array([1.5, 0.5]))
    np.testing.assert_allclose(terms.loss, [[0.25, 3.0, 0], [(1.5 + 3.5) / 2, 0, 0]])


def test_gradient_reaches_anchors_and_the_chosen_rows_alone():
    def loss(anchors, gallery):
        return mined_terms(anchors, gallery, TRIPLETS, 1.5, **OPTIONS).loss[0]

    # Only 1/2 [3 - 4 + 1.5]_+ is active. The positive is (0, 3), the negative (4, 3).
    by_anchors, by_gallery = jax.grad(loss, (0, 1))(ANCHORS, GALLERY)
    np.testing.assert_allclose(by_anchors, [[0, -0.5], [0, 0], [0, 0]])
    np.testing.assert_allclose(by_gallery, [[0.5, 0.5], [-0.5, 0], [0, 0]])
