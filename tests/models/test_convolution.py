"""Our convolutions: values, gradients, and what each device gets."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtdml_jax.models import convolution
from mtdml_jax.models.convolution import convolve, convolve_depthwise

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
ONE = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))
# Images, kernel, strides, padding.
CASES = {
    'pointwise': ((2, 5, 7, 3), (1, 1, 3, 4), (1, 1), NONE),
    'pointwise, strides, odd sides': ((2, 5, 7, 3), (1, 1, 3, 4), (2, 3), NONE),
    'pointwise, strides, even sides': ((2, 6, 4, 3), (1, 1, 3, 4), (2, 2), NONE),
    'one pixel, padded': ((2, 5, 6, 3), (1, 1, 3, 4), (2, 1), ((1, 0), (0, 2))),
    'few channels': ((2, 5, 7, 3), (3, 3, 3, 4), (1, 1), ONE),
    'few channels, even sides': ((2, 6, 8, 3), (3, 3, 3, 2), (1, 1), ONE),
    'few channels, asymmetric': ((2, 7, 4, 4), (2, 3, 4, 3), (2, 3), ((0, 2), (3, 1))),
    'one channel': ((2, 6, 5, 1), (3, 3, 1, 2), (2, 2), ONE),
    'small map': ((3, 4, 3, 5), (3, 3, 5, 4), (1, 1), ONE),
    'small map, asymmetric': ((3, 2, 5, 4), (2, 3, 4, 5), (1, 1), ((0, 2), (3, 1))),
    'tiny map': ((3, 3, 2, 5), (3, 3, 5, 4), (1, 1), ONE),
    'tiny map, strides': ((3, 7, 6, 5), (3, 3, 5, 4), (2, 2), NONE),
    'tiny map, asymmetric': ((3, 4, 7, 5), (2, 3, 5, 4), (2, 3), ((0, 2), (3, 1))),
    'many channels': ((2, 4, 5, 128), (3, 3, 128, 2), (1, 1), ONE),
    'many channels, asymmetric': ((2, 4, 5, 128), (3, 2, 128, 2), (1, 1), ((2, 1), (0, 1))),
    'many features': ((2, 5, 7, 3), (3, 3, 3, 32), (1, 1), ONE),
    'many features, wide padding': ((2, 4, 6, 3), (2, 3, 3, 32), (1, 1), ((0, 3), (4, 0))),
    'strides, odd sides': ((2, 7, 5, 3), (3, 3, 3, 4), (2, 2), ONE),
    'strides, asymmetric': ((2, 8, 9, 3), (2, 5, 3, 4), (3, 1), ((0, 1), (4, 2))),
    'stem of 7x7': ((2, 9, 8, 1), (7, 7, 1, 4), (2, 2), ((3, 3), (3, 3))),
    'one image': ((1, 6, 6, 3), (3, 3, 3, 4), (1, 1), ONE),
    'no image': ((0, 6, 6, 3), (3, 3, 3, 4), (1, 1), ONE),
}


@pytest.fixture(autouse=True)
def own_gradients(monkeypatch):
    """The gradients of small kernels are ours with each version of jax."""
    monkeypatch.setattr(convolution, '_XLA_GRADIENT', 0)


def plain(x, kernel, strides, padding, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=LAYOUT, **options
    )


def random(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def with_gradients(function, x, kernel, gradient):
    """(result, gradients of both arguments)."""
    result, pull = jax.vjp(function, x, kernel)
    return result, *pull(gradient)


def loops(x, kernel, gradient, strides, padding):
    """Result and gradients in float64, one position of the kernel after the other."""
    x, kernel, gradient = (np.asarray(a, np.float64) for a in (x, kernel, gradient))
    padded = np.pad(x, ((0, 0), *padding, (0, 0)))
    result, to_padded, to_kernel = map(np.zeros_like, (gradient, padded, kernel))
    for i, j in np.ndindex(kernel.shape[:2]):
        rows, columns = (
            slice(start, start + stride * (size - 1) + 1, stride)
            for start, stride, size in zip((i, j), strides, gradient.shape[1:3], strict=True)
        )
        place = (slice(None), rows, columns)
        result += padded[place] @ kernel[i, j]
        to_padded[place] += gradient @ kernel[i, j].T
        to_kernel[i, j] = np.einsum('bhwc,bhwf->cf', padded[place], gradient)
    (top, _), (left, _) = padding
    return result, to_padded[:, top:, left:][:, : x.shape[1], : x.shape[2]], to_kernel


def check(images, kernel, strides, padding):
    """Compares result and gradients with the loops."""
    function = partial(convolve, strides=strides, padding=padding)
    shape = jax.eval_shape(
        function, *(jax.ShapeDtypeStruct(s, 'float32') for s in (images, kernel))
    )
    arrays = random(images, kernel, shape.shape)
    found = jax.jit(partial(with_gradients, function))(*arrays)
    chex.assert_trees_all_close(
        found, jax.tree.map(np.float32, loops(*arrays, strides, padding)), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_result_and_gradients_are_those_of_loops(case):
    check(*case)


@pytest.mark.parametrize('strides', [(1, 1), (2, 2)])
@pytest.mark.parametrize('images_of_block', [1, 2, 5])
def test_blocks_of_images_sum_to_the_gradient_of_the_batch(monkeypatch, strides, images_of_block):
    images = (5, 9, 9, 2)
    smaller = (9, 9, 2) if strides == (1, 1) else (5, 5, 3)
    size = 4 * 7 * np.prod(smaller)
    monkeypatch.setattr(convolution, '_BLOCK_BYTES', int(size) * images_of_block)
    monkeypatch.setattr(convolution, '_WHOLE_BLOCKS', 0)
    check(images, (3, 3, 2, 3), strides, ONE)


@pytest.mark.parametrize(('channels', 'count'), [(8, 1), (1, 3)])
def test_small_gradients_of_kernels_are_those_of_xla_but_for_images(monkeypatch, channels, count):
    monkeypatch.setattr(convolution, '_XLA_GRADIENT', 2**24)
    case = ((2, 5, 7, channels), (3, 3, channels, 4), (1, 1), ONE)
    check(*case)
    arrays = random(*case[:2], (2, 5, 7, 4))
    found = jax.jit(partial(convolution._gradient_of_kernel, strides=(1, 1), padding=ONE)).lower(
        *arrays
    )
    text = found.as_text()
    assert text.count('stablehlo.convolution') + text.count('stablehlo.dot_general') == count


@pytest.mark.parametrize(
    ('dtype', 'channels', 'options'),
    [
        (jnp.bfloat16, 4, {}),
        (jnp.float32, 2, {'feature_group_count': 2}),
        (jnp.float32, 4, {'rhs_dilation': (2, 1)}),
        (jnp.float32, 4, {'lhs_dilation': (1, 2)}),
        (jnp.float32, 4, {'precision': 'highest'}),
    ],
)
def test_other_types_groups_dilation_and_precision_are_left_to_xla(dtype, channels, options):
    x, kernel = (a.astype(dtype) for a in random((2, 6, 6, 4), (3, 3, channels, 4)))
    ours, xla = (
        jax.make_jaxpr(partial(f, strides=(1, 1), padding=ONE, **options))(x, kernel)
        for f in (partial(convolve, dimension_numbers=LAYOUT), plain)
    )
    assert str(ours) == str(xla)


def test_padding_by_name_is_left_to_xla():
    x, kernel = random((2, 6, 6, 4), (3, 3, 4, 2))
    found = convolve(x, kernel, (2, 2), 'SAME', dimension_numbers=LAYOUT)
    np.testing.assert_array_equal(found, plain(x, kernel, (2, 2), 'SAME'))


ours_and_xla = [partial(f, strides=(1, 1), padding=ONE) for f in (convolve, plain)]


def test_vmap_is_a_loop():
    x, kernel, gradient = random((3, 2, 5, 6, 3), (3, 3, 3, 4), (3, 2, 5, 6, 4))
    function = partial(with_gradients, ours_and_xla[0])
    found = jax.jit(jax.vmap(function, (0, None, 0)))(x, kernel, gradient)
    one_by_one = [jax.jit(function)(a, kernel, b) for a, b in zip(x, gradient, strict=True)]
    expected = jax.tree.map(lambda *arrays: np.stack(arrays), *one_by_one)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-4)


def second_order(function, wrap=lambda f: f):
    """The squared norm of the gradient of a loss, as a function."""

    def loss(x, kernel):
        return jnp.sum(jnp.sin(wrap(function)(x, kernel)))

    def norm(x, kernel):
        return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, kernel))

    return norm


@pytest.mark.parametrize(
    ('derivative', 'wrap'),
    [
        (jax.value_and_grad, lambda f: f),
        (jax.value_and_grad, jax.checkpoint),
        (lambda f, _: lambda *x: jax.jvp(f, x, x), lambda f: f),
    ],
    ids=['reverse over reverse', 'with checkpoint', 'forward over reverse'],
)
def test_second_derivatives_are_those_of_xla(derivative, wrap):
    arrays = random((2, 5, 4, 2), (3, 3, 2, 3))
    found, expected = (
        jax.jit(derivative(second_order(f, w), (0, 1)))(*arrays)
        for f, w in zip(ours_and_xla, (wrap, lambda f: f), strict=True)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


def test_forward_mode_raises_type_error():
    arrays = random((2, 5, 4, 2), (3, 3, 2, 3))
    with pytest.raises(TypeError, match='forward-mode'):
        jax.jvp(ours_and_xla[0], arrays, arrays)


def test_same_arrays_give_the_same_bits():
    arrays = random((4, 9, 9, 3), (3, 3, 3, 4), (4, 9, 9, 4))
    function = jax.jit(partial(with_gradients, ours_and_xla[0]))
    chex.assert_trees_all_equal(function(*arrays), function(*arrays))


def test_not_a_number_reaches_the_outputs_that_see_it():
    x, kernel = random((2, 9, 9, 3), (3, 3, 3, 20))
    x[1, 4, 4, 0] = np.nan
    is_nan = np.isnan(ours_and_xla[0](x, kernel)).all(axis=-1)
    assert is_nan[1, 3:6, 3:6].all()
    assert is_nan.sum() == 9


def products(function, arrays, platform):
    """The convolutions and matrix products of a lowered program, without names of values."""
    traced = jax.jit(partial(with_gradients, function)).trace(*arrays)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    found = re.findall(r'stablehlo\.(?:convolution|dot_general).*', text)
    return sorted(re.sub(r'%\w+', '', line) for line in found)


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize('case', [CASES['pointwise'], CASES['small map']])
def test_other_devices_compute_the_convolutions_of_xla(platform, case):
    images, kernel, strides, padding = case
    arrays = random(images, kernel, (*images[:3], kernel[3]))
    ours, xla = (
        products(partial(f, strides=strides, padding=padding), arrays, platform)
        for f in (convolve, plain)
    )
    assert ours == xla
    assert len(ours) == 3


@pytest.mark.parametrize(('platform', 'convolutions'), [('cpu', 0), ('cuda', 1), ('tpu', 1)])
def test_the_device_that_runs_a_depthwise_convolution_decides_its_form(platform, convolutions):
    arrays = random((2, 5, 6, 3), (3, 3, 1, 3))
    traced = jax.jit(partial(convolve_depthwise, stride=2)).trace(*arrays)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count('stablehlo.convolution') == convolutions


@pytest.mark.parametrize('strides', [(1, 1), (2, 2)])
def test_image_that_is_smaller_than_the_kernel_leaves_no_result(strides):
    found = convolve(*random((2, 2, 9, 3), (5, 3, 3, 4)), strides, NONE, dimension_numbers=LAYOUT)
    assert found.shape == (2, 0, -(-7 // strides[1]), 4)


def test_sides_of_images_may_be_unknown_in_an_export():
    x, kernel = random((2, 5, 4, 3), (3, 3, 3, 4))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape('b, h, w, 3'), x.dtype)
    function = partial(
        convolve, kernel=kernel, strides=(1, 1), padding=ONE, dimension_numbers=LAYOUT
    )
    exported = jax.export.export(jax.jit(function))(shape)
    np.testing.assert_allclose(exported.call(x), plain(x, kernel, (1, 1), ONE), atol=1e-5)


@pytest.mark.parametrize('strides', [(1, 1), (2, 2)])
def test_tiny_results_and_their_gradients_are_products_on_cpus(strides):
    arrays = random(
        (2, 3, 3, 32), (3, 3, 32, 64), (2, 3, 3, 64) if strides == (1, 1) else (2, 2, 2, 64)
    )
    found = products(partial(convolve, strides=strides, padding=ONE), arrays, 'cpu')
    assert not any('convolution' in line for line in found)


def test_cpus_compute_matrix_products():
    arrays = random((2, 4, 4, 3), (3, 3, 3, 4), (2, 4, 4, 4))
    found = products(ours_and_xla[0], arrays, 'cpu')
    assert sum('dot_general' in line for line in found) == 4


def test_number_of_images_may_be_symbolic():
    images, kernel = (5, 6, 3), (3, 3, 3, 4)
    (batch,) = jax.export.symbolic_shape('batch')
    shapes = [
        jax.ShapeDtypeStruct(s, jnp.float32)
        for s in ((batch, *images), kernel, (batch, *images[:2], 4))
    ]
    function = jax.jit(partial(with_gradients, ours_and_xla[0]))
    exported = jax.export.export(function)(*shapes)
    arrays = random((3, *images), kernel, (3, *images[:2], 4))
    chex.assert_trees_all_close(exported.call(*arrays), function(*arrays), rtol=1e-5, atol=1e-4)
