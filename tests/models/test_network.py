"""The network: sliced embedding, cosine classifier, and what it refuses to be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from reference import unit_slices

from mtdml_jax.host.errors import UserError
from mtdml_jax.models import Network, Outputs, make_network
from mtdml_jax.models.resnet import RESNETS

NUM_CLASSES = 7
MODEL = {
    'backbone': 'resnet18',
    'width_factor': 1 / 16,
    'stem': 'small',
    'embedding_size': 12,
    'num_slices': 3,
    'logit_scale': 10.0,
    'learn_logit_scale': True,
    'dtype': 'float32',
    'embedding_norm': 'none',
}
IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)


def network(**changed):
    return make_network(ConfigDict(MODEL | changed), NUM_CLASSES)


def shapes(model, images=IMAGES):
    """(outputs, variables) as shapes."""
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.eval_shape(model.apply, variables, images), variables


class Backbone(nn.Module):
    """Stands in for a ResNet: the columns' mean pixels, doubled in training."""

    @nn.compact
    def __call__(self, images, *, train):
        return jnp.mean(images, axis=(1, 3)) * (2 if train else 1)


def small_network(scale=10.0, learn_scale=True, norm='none', axis_name=None):
    return Network(Backbone(), 12, 3, NUM_CLASSES, scale, learn_scale, norm, axis_name)


@pytest.fixture(scope='module')
def small():
    """The variables of a small network and its compiled evaluation."""
    model = small_network()
    return jax.jit(model.init)(jax.random.key(1), IMAGES), jax.jit(model.apply)


def with_parameters(variables, **changed):
    return variables | {'params': variables['params'] | changed}


@pytest.mark.parametrize('backbone', RESNETS)
def test_outputs_are_embedding_and_logits_in_float32(backbone):
    outputs, _ = shapes(
        network(backbone=backbone, width_factor=1, embedding_size=256, num_slices=8)
    )
    assert isinstance(outputs, Outputs)
    assert outputs.embedding.shape == (6, 256)
    assert outputs.logits.shape == (6, 8, NUM_CLASSES)
    assert outputs.embedding.dtype == outputs.logits.dtype == jnp.float32


def test_bfloat16_keeps_parameters_embedding_and_logits_in_float32():
    outputs, variables = shapes(network(dtype='bfloat16'))
    leaves = jax.tree.leaves((outputs, variables))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


def test_settings_of_the_config_reach_the_backbone():
    changed = {'backbone': 'resnet50', 'dtype': 'bfloat16'}
    config = ConfigDict(MODEL | changed)
    backbone = make_network(config, NUM_CLASSES, axis_name='devices').backbone
    found = backbone.depth, backbone.width_factor, backbone.stem, backbone.axis_name
    assert found == ('resnet50', 1 / 16, 'small', 'devices')
    assert backbone.dtype == jnp.bfloat16
    normed = network(embedding_norm='batch')
    assert (normed.norm, normed.axis_name) == ('batch', None)
    assert make_network(config, NUM_CLASSES, axis_name='devices').axis_name == 'devices'


def test_batch_norm_standardises_the_embedding_over_the_batch_of_all_devices(small):
    variables, _ = small
    images = np.random.default_rng(1).normal(size=(8, 8, 8, 1)).astype(np.float32)
    statistics = {'BatchNorm_0': {'mean': jnp.zeros(12), 'var': jnp.ones(12)}}

    def embed(images, axis_name=None):
        model = small_network(norm='batch', axis_name=axis_name)
        normed = variables | {'batch_stats': statistics}
        outputs, _ = model.apply(normed, images, train=True, mutable=['batch_stats'])
        return outputs.embedding

    # One face a device, which would standardise to 0.
    spread = jax.pmap(partial(embed, axis_name='batch'), axis_name='batch')(images[:, None])
    np.testing.assert_allclose(spread[:, 0], embed(images), atol=2e-4)


def test_batch_norm_standardises_the_embedding_and_evaluation_does_so_by_running_statistics(small):
    variables, apply = small
    model = small_network(norm='batch')
    plain, _ = small_network().apply(variables, IMAGES, train=True)
    plain = np.asarray(plain, np.float64)
    mean, variance = plain.mean(axis=0), plain.var(axis=0)
    zeros = {'BatchNorm_0': {'mean': jnp.zeros(12), 'var': jnp.ones(12)}}
    normed = variables | {'batch_stats': zeros}
    assert (
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)['batch_stats'].keys() == zeros.keys()
    )
    outputs, updated = model.apply(normed, IMAGES, train=True, mutable=['batch_stats'])
    expected = (plain - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(outputs.embedding, expected, atol=2e-4)
    found = updated['batch_stats']['BatchNorm_0']
    np.testing.assert_allclose(found['mean'], 0.1 * mean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found['var'], 0.9 + 0.1 * variance, rtol=1e-3)
    evaluated = model.apply(normed | updated, IMAGES).embedding
    unnormed = np.asarray(apply(variables, IMAGES).embedding)
    expected = (unnormed - 0.1 * mean) / np.sqrt(0.9 + 0.1 * variance + 1e-5)
    np.testing.assert_allclose(evaluated, expected, atol=2e-4)


@pytest.mark.parametrize('channels', [1, 3, 5])
def test_any_number_of_channels_is_taken(channels):
    outputs, _ = shapes(network(), np.ones((2, 48, 48, channels), np.float32))
    assert outputs.embedding.shape == (2, 12)


def test_logits_are_the_scaled_cosine_of_each_slice_and_its_class_vector(small):
    variables, apply = small
    embedding, logits = apply(variables, IMAGES)
    slices = unit_slices(embedding, 3)
    classes = np.asarray(variables['params']['classes'], np.float64)
    assert logits.shape == (len(IMAGES), 3, NUM_CLASSES)
    for s in range(3):
        for c in range(NUM_CLASSES):
            cosine = slices[s] @ classes[s, :, c] / np.linalg.norm(classes[s, :, c])
            np.testing.assert_allclose(logits[:, s, c], 10 * cosine, atol=1e-4)
    # Normalising the embedding as a whole would give other logits.
    whole = unit_slices(embedding, 1)[0].reshape(-1, 3, classes.shape[1]) * 3**0.5
    unsliced = np.einsum('bsd,sdc->bsc', whole, classes / np.linalg.norm(classes, axis=1)[:, None])
    assert np.max(np.abs(unsliced - logits / 10)) > 0.01
    assert np.max(np.abs(logits)) <= 10


def test_length_of_embedding_and_class_vectors_does_not_change_the_logits(small):
    variables, apply = small
    embedding, logits = apply(variables, IMAGES)
    params = variables['params']
    longer = with_parameters(
        variables,
        embedding=jax.tree.map(lambda x: 5 * x, params['embedding']),
        classes=params['classes'] * np.arange(1, NUM_CLASSES + 1),
    )
    found = apply(longer, IMAGES)
    np.testing.assert_allclose(found.embedding, 5 * embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)


def test_learned_scale_is_a_parameter_that_multiplies_the_logits(small):
    variables, apply = small
    assert variables['params']['scale'] == 10
    doubled = apply(with_parameters(variables, scale=jnp.float32(20)), IMAGES)
    np.testing.assert_allclose(
        doubled.logits, 2 * apply(variables, IMAGES).logits, rtol=1e-5, atol=1e-6
    )


def test_fixed_scale_is_no_parameter_but_counts(small):
    variables, apply = small
    fixed = small_network(scale=4.0, learn_scale=False)
    params = {name: leaf for name, leaf in variables['params'].items() if name != 'scale'}
    assert jax.eval_shape(fixed.init, jax.random.key(0), IMAGES)['params'].keys() == params.keys()
    found = jax.jit(fixed.apply)({'params': params}, IMAGES)
    np.testing.assert_allclose(
        found.logits, 0.4 * apply(variables, IMAGES).logits, rtol=1e-5, atol=1e-6
    )


def test_backbone_is_told_whether_it_trains_and_does_not_by_default(small):
    variables, apply = small
    trained = small_network().apply(variables, IMAGES, train=True)
    np.testing.assert_allclose(
        trained.embedding, 2 * apply(variables, IMAGES).embedding, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (
            {'backbone': 'vgg16'},
            r"config\.model\.backbone: .*resnet18, .*resnet50, .*, found 'vgg16'",
        ),
        ({'stem': 'large'}, r"config\.model\.stem: .*imagenet, small, cifar, found 'large'"),
        ({'dtype': 'float16'}, r"config\.model\.dtype: .*float32, bfloat16, found 'float16'"),
        ({'num_slices': 5}, r'embedding_size \(12\) must be divisible by .*num_slices \(5\)'),
        ({'num_slices': 0}, r'num_slices \(0\)'),
    ],
)
def test_impossible_network_names_the_key_and_what_was_found(changed, message):
    with pytest.raises(UserError, match=message):
        network(**changed)
