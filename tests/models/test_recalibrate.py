"""BatchNorm's statistics measured on images: outputs stay, and a batch has these statistics."""

import chex
import jax
import numpy as np
from flax import linen as nn
from test_fold import random_variables

from mtdml_jax.models.layers import conv, make_norm
from mtdml_jax.models.recalibrate import recalibrate

EPSILON = 0.01


class Net(nn.Module):
    """Two convolutions with BatchNorm, one in a block, and a BatchNorm without scale and bias."""

    @nn.compact
    def __call__(self, x, *, train=False):
        norm = make_norm(train, None, None, EPSILON)
        x = nn.relu(norm(name='first')(conv(4, (3, 3))(x)))
        x = norm(name='second')(conv(3, (3, 3), strides=2)(x))
        return norm(name='bare', use_bias=False, use_scale=False)(x)


def apply(variables, images, *, train=False):
    return jax.jit(lambda v, x: Net().apply(v, x, train=train, mutable=['batch_stats']))(
        variables, images
    )


def test_outputs_stay_and_statistics_are_those_of_the_inputs():
    variables, images = random_variables(Net())
    images = 3 * images + 1
    found = recalibrate(Net(), variables, images)
    before, after = (apply(x, images)[0] for x in (variables, found))
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    kernel = variables['params']['Conv_0']['kernel']
    x = np.asarray(
        jax.lax.conv(images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), 'SAME')
    )
    stats = found['batch_stats']['first']
    np.testing.assert_allclose(stats['mean'], x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats['var'], x.var((0, 2, 3)), rtol=1e-4)
    assert np.abs(stats['var'] / variables['batch_stats']['first']['var'] - 1).min() > 0.1


def test_parts_have_the_statistics_of_all_images(monkeypatch):
    variables, _ = random_variables(Net())
    images = np.random.default_rng(1).normal(size=(7, 6, 6, 3)).astype(np.float32)
    whole = recalibrate(Net(), variables, images[:6])
    monkeypatch.setattr('mtdml_jax.models.recalibrate.PART', 2)
    chex.assert_trees_all_close(recalibrate(Net(), variables, images), whole, rtol=1e-4, atol=1e-5)


def test_training_on_these_images_starts_from_the_same_outputs():
    """Except for the BatchNorm without scale and bias, which cannot be rewritten."""
    variables, images = random_variables(Net())
    found = recalibrate(Net(), variables, images)

    def second(variables, **options):
        _, state = Net().apply(
            variables, images, mutable=['batch_stats', 'intermediates'], **options
        )
        return state['intermediates']['second']['__call__'][0]

    options = {'capture_intermediates': True}
    expected = second(variables, **options)
    np.testing.assert_allclose(second(found, train=True, **options), expected, atol=1e-4)
    assert np.abs(second(variables, train=True, **options) - expected).max() > 0.1


def test_batch_norm_without_scale_and_bias_keeps_its_statistics():
    variables, images = random_variables(Net())
    found = recalibrate(Net(), variables, images)
    chex.assert_trees_all_equal(found['batch_stats']['bare'], variables['batch_stats']['bare'])


def test_channel_that_is_constant_keeps_its_output():
    variables, images = random_variables(Net())
    variables['params']['Conv_0']['kernel'][..., 1] = 0
    found = recalibrate(Net(), variables, images)
    before, after = (apply(x, images)[0] for x in (variables, found))
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    assert float(found['batch_stats']['first']['var'][1]) == 0
    trained, _ = apply(found, images, train=True)
    assert np.isfinite(trained).all()
