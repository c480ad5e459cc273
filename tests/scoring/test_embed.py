import jax.numpy as jnp
import numpy as np
import pytest
from small_data import CONFIG, png, split_of

from mtdml_jax.config import load_config
from mtdml_jax.models import Outputs
from mtdml_jax.scoring.embed import make_embedder


class Corner:
    """Stands in for a network: embeds an image by its upper corners, one slice of [left, 1] each."""

    num_slices = 2

    def apply(self, variables, images, *, train):
        left, right = images[:, 0, 0, 0] + variables['shift'], images[:, 0, -1, 0]
        ones = jnp.ones_like(left)
        logits = jnp.stack([left - 1, left + 1], axis=1)[..., None]
        return Outputs(jnp.stack([left, ones, right, 3 * ones], axis=1), logits)


def split_of_corners(corners):
    """A split of 2x2 images with these grey values in the upper corners."""
    pixels = [np.array([[[left], [right]], [[0], [0]]]) for left, right in corners]
    return split_of([png(x) for x in pixels], np.arange(len(corners)))


def unit(*vector):
    return np.array(vector) / np.linalg.norm(vector)


@pytest.mark.parametrize('flip', [False, True])
def test_rows_are_unit_slices_of_all_images_in_order(flip):
    overrides = ['data.image_size=2', 'data.mean=(0.0,)', 'data.std=(1.0,)', f'eval.flip={flip}']
    config = load_config(CONFIG, [f'--config.{x}' for x in (*overrides, 'eval.batch_size=2')])
    corners = [(0, 255), (255, 255), (51, 102)]
    embedded = make_embedder(Corner(), config)({'shift': jnp.array(1.0)}, split_of_corners(corners))

    def look(left, right):
        return np.stack([unit(left + 1, 1), unit(right, 3)]), left + 1

    for row, (left, right) in enumerate(np.array(corners) / 255):
        slices, logit = look(left, right)
        if flip:
            mirrored, mirrored_logit = look(right, left)
            slices = np.stack([unit(*x) for x in slices + mirrored])
            logit = (logit + mirrored_logit) / 2
        np.testing.assert_allclose(embedded.embeddings[row], slices.ravel() / 2**0.5, rtol=1e-5)
        np.testing.assert_allclose(embedded.logits[row], [logit], rtol=1e-5)
    np.testing.assert_array_equal(embedded.labels, [0, 1, 2])
