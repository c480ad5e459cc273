"""The backbones: sizes, shapes, their start and their BatchNorm."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtdml_jax.models.resnet import RESNETS, ResNet

# A width of 4 channels: what does not depend on the width compiles in no time.
NARROW = 1 / 16


def shapes_of(images=(2, 48, 48, 1), **options):
    """(features, variables, intermediate maps) of a network, as shapes."""
    model = ResNet(**options)
    images = jax.ShapeDtypeStruct(images, jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    apply = partial(model.apply, train=False, capture_intermediates=True, mutable='intermediates')
    features, state = jax.eval_shape(apply, variables, images)
    return features, variables, state['intermediates']


def num_parameters(variables):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))


# torchvision's resnet18, 34 and 50 without their last layer; resnet10 lacks every stage's second block,
# which has 18 * c * c parameters in two convolutions of c channels and 4 * c in their BatchNorm.
@pytest.mark.parametrize(
    ('depth', 'parameters', 'features'),
    [
        ('resnet10', 11_176_512 - 18 * 348_160 - 4 * 960, 512),
        ('resnet18', 11_176_512, 512),
        ('resnet34', 21_284_672, 512),
        ('resnet50', 23_508_032, 2048),
    ],
)
def test_networks_have_the_known_number_of_parameters_and_features(depth, parameters, features):
    output, variables, _ = shapes_of((2, 224, 224, 3), depth=depth, stem='imagenet')
    assert num_parameters(variables) == parameters
    assert output.shape == (2, features)


def test_imagenet_stem_brings_224_pixels_down_to_maps_of_7():
    _, _, maps = shapes_of((2, 224, 224, 3), stem='imagenet')
    sides = [maps[f'BasicBlock_{number}']['__call__'][0].shape[1:] for number in (1, 3, 5, 7)]
    assert sides == [(56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512)]


@pytest.mark.parametrize('depth', RESNETS)
def test_small_stem_keeps_48_pixels_at_maps_of_at_least_3(depth):
    _, _, maps = shapes_of((2, 48, 48, 1), depth=depth, stem='small')
    outputs = [x for x in jax.tree.leaves(maps) if x.ndim == 4]
    assert {x.shape[1:3] for x in outputs} == {(24, 24), (12, 12), (6, 6), (3, 3)}


def test_cifar_stem_keeps_all_pixels_for_the_first_stage():
    _, _, maps = shapes_of((2, 48, 48, 1), stem='cifar')
    sides = [maps[f'BasicBlock_{number}']['__call__'][0].shape[1] for number in (1, 3, 5, 7)]
    assert sides == [48, 24, 12, 6]


def test_small_stem_has_no_7x7_convolution():
    _, variables, _ = shapes_of((2, 48, 48, 3), stem='small')
    assert variables['params']['Conv_0']['kernel'].shape == (3, 3, 3, 64)


@pytest.mark.parametrize(('width_factor', 'stem_width'), [(0.25, 16), (0.3, 19), (2, 128)])
def test_width_factor_multiplies_the_channels_of_every_stage(width_factor, stem_width):
    features, _, maps = shapes_of(width_factor=width_factor, stem='small')
    assert features.shape == (2, 8 * stem_width)
    stages = [maps[f'BasicBlock_{number}']['__call__'][0].shape[-1] for number in (0, 2, 4, 6)]
    assert stages == [stem_width, 2 * stem_width, 4 * stem_width, 8 * stem_width]


def test_tiny_width_keeps_a_channel():
    features, _, _ = shapes_of(width_factor=0.001, stem='small')
    assert features.shape == (2, 8)


@pytest.mark.parametrize('channels', [1, 3, 5])
def test_any_number_of_channels_is_taken(channels):
    features, variables, _ = shapes_of((2, 48, 48, channels), stem='small')
    assert features.shape == (2, 512)
    assert variables['params']['Conv_0']['kernel'].shape == (3, 3, channels, 64)


def test_bfloat16_computes_so_but_keeps_parameters_statistics_and_features_in_float32():
    features, variables, maps = shapes_of(dtype=jnp.bfloat16, stem='small')
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert features.dtype == jnp.float32
    outputs = [x for x in jax.tree.leaves(maps) if x.ndim == 4]
    assert {x.dtype for x in outputs} == {jnp.dtype(jnp.bfloat16)}


def random_images(batch=8, side=8, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, side, side, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ('depth', 'norms'),
    [('resnet18', 20), pytest.param('resnet50', 53, marks=pytest.mark.slow)],
)
def test_branches_of_blocks_start_as_loud_as_their_shortcuts(depth, norms):
    model = ResNet(depth=depth, width_factor=NARROW, stem='small')
    init = jax.jit(partial(model.init, train=False))
    leaves = jax.tree_util.tree_leaves_with_path(init(jax.random.key(0), random_images())['params'])
    scales = [leaf for path, leaf in leaves if path[-1].key == 'scale']
    assert len(scales) == norms
    for scale in scales:
        np.testing.assert_array_equal(scale, 1)


@pytest.fixture(scope='module')
def narrow():
    """Variables of a narrow ResNet-18, and its compiled (features, state after the batch)."""
    model = ResNet(width_factor=NARROW, stem='small')
    rng = np.random.default_rng(1)

    def start(path, shape):
        names = [key.key for key in path]
        if names[-1] == 'kernel':
            return rng.normal(size=shape, scale=np.prod(shape[:3]) ** -0.5)
        # The last scale of each branch is 0: what comes out has gone through the shortcuts.
        silent = 'BasicBlock' in names[1] and names[-2:] == ['BatchNorm_1', 'scale']
        return np.full(shape, names[-1] in ('scale', 'var') and not silent, np.float32)

    init = partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), random_images())
    variables = jax.tree_util.tree_map_with_path(lambda p, x: np.float32(start(p, x.shape)), shapes)

    @partial(jax.jit, static_argnames='train')
    def apply(variables, images, train):
        return model.apply(variables, images, train=train, mutable='batch_stats')

    return variables, apply


def test_silent_branches_make_their_convolutions_irrelevant(narrow):
    (variables, apply), images = narrow, random_images()

    def features(is_doubled=lambda size: False):
        """After doubling the kernels of the given sizes within the blocks."""

        def change(path, leaf):
            in_block = 'BasicBlock' in path[0].key and path[-1].key == 'kernel'
            return leaf * 2 if in_block and is_doubled(leaf.shape[0]) else leaf

        params = jax.tree_util.tree_map_with_path(change, variables['params'])
        return apply(variables | {'params': params}, images, train=False)[0]

    np.testing.assert_array_equal(features(lambda size: size == 3), features())
    assert np.max(np.abs(features(lambda size: size == 1) - features())) > 0.1


def test_statistics_change_in_training_only(narrow):
    (variables, apply), images = narrow, random_images() + 3
    _, evaluated = apply(variables, images, train=False)
    _, trained = apply(variables, images, train=True)
    chex.assert_trees_all_equal(evaluated['batch_stats'], variables['batch_stats'])
    # The running mean starts at 0 and moves a tenth of the way to the batch's.
    kernel = variables['params']['Conv_0']['kernel']
    stem = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    mean = trained['batch_stats']['BatchNorm_0']['mean']
    np.testing.assert_allclose(mean, 0.1 * np.mean(stem, axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)


def test_features_of_an_image_depend_on_its_batch_in_training_only(narrow):
    (variables, apply), images = narrow, random_images()
    others = np.concatenate([images[:1], 2 * images[1:] + 1])

    def difference(train):
        first, second = (apply(variables, x, train=train)[0][0] for x in (images, others))
        return np.max(np.abs(first - second))

    assert difference(train=False) < 1e-5
    assert difference(train=True) > 0.01


def test_batch_statistics_are_those_of_all_devices(narrow):
    (variables, apply), images = narrow, random_images()
    images *= np.linspace(1, 4, 8, dtype=np.float32)[:, None, None, None]
    parallel = ResNet(width_factor=NARROW, stem='small', axis_name='batch')

    def train(image):
        return parallel.apply(variables, image, train=True, mutable='batch_stats')

    one, one_state = apply(variables, images, train=True)
    eight, states = jax.pmap(train, axis_name='batch')(images[:, None])
    # Sums in another order, amplified by 18 layers: up to 1.4e-5 on some CPUs. Each device's own
    # statistics would be off by more than 0.1.
    np.testing.assert_allclose(eight[:, 0], one, rtol=1e-4, atol=1e-4)
    for device in range(8):
        state = jax.tree.map(lambda x, device=device: np.asarray(x)[device], states)
        chex.assert_trees_all_close(state, one_state, rtol=1e-4, atol=1e-5)
