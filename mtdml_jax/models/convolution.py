"""Convolutions whose three products are written for CPUs: the same values up to rounding, in less time.

XLA has two libraries for a convolution on a CPU, YNNPACK and Eigen. YNNPACK is slow at gradients of
kernels, at many channels on small maps, and at kernels of one pixel. JAX cannot choose between them, but
each of the products can also be written otherwise: as matrix products, or as a convolution that YNNPACK
does not take. Other devices get XLA's own convolution and gradients; XLA decides when it compiles.

Which form a product gets depends on its shape and on the version of jax, so the same program gives the
same bits.
experiments/benchmarks/benchmark_convolutions.py times the forms for all shapes of the networks.
"""

import itertools
import math
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from mtdml_jax.loss.tiles import in_blocks

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# A map of at most this many pixels is small: its input's gradient is one product with the whole kernel.
_SMALL_MAP = 16
# A result of at most this many pixels is tiny: it is one product, and so is its gradient. XLA's
# convolutions run at a twentieth of their speed there: 256 channels on 2x2 take 64 ms in place of 3.
_TINY_MAP = 9
# Number of channels, summed over by the product, from which Eigen is faster than YNNPACK. Gradients of
# inputs need fewer, because what follows them drops Eigen's additional column without a copy.
_EIGEN_FORWARD, _EIGEN_GRADIENT = 64, 32
# Of at most this many channels and features, XLA gives a convolution to Eigen. For one channel, and for
# images that fit a cache, YNNPACK is faster with two columns of the result at once.
_FEW_CHANNELS, _CACHE_BYTES = 16, 2**20
# The gradient of a kernel is summed over blocks of images that fit the caches, if there would be more
# than _WHOLE_BLOCKS blocks: each block costs the start of its operations.
_BLOCK_BYTES = 2**23
_WHOLE_BLOCKS = 3
# The gradient of a kernel with at most this many multiplications for each of its pixels is XLA's, but
# not for the few channels of images. With jax 0.12 it is as fast, without copies. With jax 0.10 it takes
# twice the time.
_XLA_GRADIENT = 2**24 if jax.__version_info__ >= (0, 12) else 0
_IMAGE_CHANNELS = 4


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """Convolves images with a kernel, as `jax.lax.conv_general_dilated`; for `flax.linen.Conv`.

    It can be differentiated in reverse mode any number of times, and vmapped. Forward mode raises
    TypeError. With few channels, a value that is not finite may also reach the next column.

    Args:
      x: images, [B, H, W, C].
      kernel: [height, width, C, features].
      strides: strides of both axes.
      padding: zeros below and above both axes.
      **options: other arguments of `jax.lax.conv_general_dilated`. With dilation, groups, a precision, a
        name as padding, types other than float32, sides that are not known or leave no result, or arrays
        on a mesh with explicit axes, XLA's own convolution computes the result.

    Returns:
      [B, H', W', features].
    """
    dilation = (*(options.get('lhs_dilation') or ()), *(options.get('rhs_dilation') or ()))
    is_ours = set(dilation) <= {1} and options.get('feature_group_count', 1) == 1
    is_ours &= options.get('precision') is None and not isinstance(padding, str)
    is_ours &= x.ndim == 4 and x.dtype == kernel.dtype == jnp.float32
    if not is_ours or _is_spread(x, kernel) or not _has_result(x, kernel, strides, padding):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return _convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)))


def convolve_depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves each channel with a kernel of its own; sides are padded by half of the kernel.

    XLA's depthwise convolution is slow on CPUs, which sum over the places of the kernel instead. A
    training step then takes a fifth of the time, and a forward pass an eighth (MobileNetV3-small, 48 px,
    jax 0.10).

    Args:
      x: images, [B, H, W, C].
      kernel: [size, size, 1, C]; the size is odd.
      stride: stride of both axes.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), C].
    """
    half = kernel.shape[0] // 2

    def on_cpu(x, kernel):
        sides = ((0, 0), (half, half), (half, half), (0, 0))
        padded = jnp.pad(lax.optimization_barrier(x), sides)
        patches = _patches(padded, kernel, (stride, stride), ((0, 0), (0, 0)))
        products = map(jnp.multiply, patches, kernel.reshape(-1, x.shape[3]))
        return reduce(jnp.add, products)

    def by_xla(x, kernel):
        strides, padding, groups = (stride, stride), [(half, half)] * 2, x.shape[3]
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=_LAYOUT, feature_group_count=groups
        )

    if _is_spread(x, kernel):
        return by_xla(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=by_xla)


def _is_spread(x, kernel):
    """Whether only JAX knows how the gradients are spread over devices.

    So it is on a mesh with explicit axes, and in a `shard_map` that checks over which axes values vary,
    unless both arrays vary over the same axes.
    """
    types = jax.typeof(x), jax.typeof(kernel)
    varying = [
        kind.vma if hasattr(kind, 'vma') else kind.manual_axis_type.varying for kind in types
    ]
    is_explicit = any(AxisType.Explicit in kind.sharding.mesh.axis_types for kind in types)
    return is_explicit or varying[0] != varying[1]


def _has_result(x, kernel, strides, padding):
    """Whether the sides of the result are known, and not zero."""
    sides = _result_sides(x, kernel, strides, padding)
    return all(isinstance(side, int) and side > 0 for side in sides)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, strides, padding):
    return _forward(x, kernel, strides, padding)[0]


def _forward(x, kernel, strides, padding):
    """Returns (result, what the gradients need)."""
    # Without the barrier XLA for CPUs fuses the BatchNorm, ReLU and shortcut before the convolution into
    # each of the copies that its products need, and so computes them again, slowly.
    x = lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)
    on_cpu, by_xla = (
        partial(form, strides=strides, padding=padding) for form in (_forward_on_cpu, _by_xla)
    )
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=by_xla), (x, kernel)


def _backward(strides, padding, kept, gradient):
    """Returns the gradients of the input and of the kernel."""

    def on_cpu(x, kernel, gradient):
        return (
            _gradient_of_input(x, kernel, gradient, strides, padding),
            _gradient_of_kernel(x, kernel, gradient, strides, padding),
        )

    def by_xla(x, kernel, gradient):
        return jax.vjp(partial(_by_xla, strides=strides, padding=padding), x, kernel)[1](gradient)

    return lax.platform_dependent(*kept, gradient, cpu=on_cpu, default=by_xla)


_convolve.defvjp(_forward, _backward)


def _by_xla(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _by_eigen(x, kernel, padding, width):
    """Convolves with stride 1 by Eigen: YNNPACK takes no result that is wider than the input."""
    rows, (low, high) = padding
    return _by_xla(x, kernel, (1, 1), (rows, (low, high + 1)))[:, :, :width]


def _in_pairs(x, kernel, strides, padding):
    """Computes two columns of the result at once, as features of a kernel with twice the stride."""
    stride, features = strides[1], kernel.shape[3]
    later = [jnp.pad(kernel, [(0, 0), side, (0, 0), (0, 0)]) for side in ((0, stride), (stride, 0))]
    _, width = _result_sides(x, kernel, strides, padding)
    rows, (low, high) = padding
    # An odd width gets one more column, which is dropped again.
    padding = (rows, (low, high + width % 2 * stride))
    pairs = _by_xla(x, jnp.concatenate(later, -1), (strides[0], 2 * stride), padding)
    return pairs.reshape(*pairs.shape[:2], 2 * pairs.shape[2], features)[:, :, :width]


def _result_sides(x, kernel, strides, padding):
    """Returns height and width of the result."""
    return [
        (side + sum(sides) - size) // stride + 1
        for side, sides, size, stride in zip(
            x.shape[1:3], padding, kernel.shape[:2], strides, strict=True
        )
    ]


def _forward_on_cpu(x, kernel, strides, padding):
    if _is_pointwise(kernel, padding):
        return _contract(x[:, :: strides[0], :: strides[1]], kernel[0, 0], 3, 0)
    if math.prod(_result_sides(x, kernel, strides, padding)) <= _TINY_MAP:
        patches = jnp.concatenate([*_patches(x, kernel, strides, padding)], axis=-1)
        patches = lax.optimization_barrier(patches)
        return _contract(patches, kernel.reshape(-1, kernel.shape[3]), 3, 0)
    is_cached = isinstance(x.shape[0], int) and x.nbytes <= _CACHE_BYTES
    if max(kernel.shape[2:]) <= _FEW_CHANNELS and (kernel.shape[2] == 1 or is_cached):
        return _in_pairs(x, kernel, strides, padding)
    keeps_width = strides == (1, 1) and sum(padding[1]) == kernel.shape[1] - 1
    if keeps_width and kernel.shape[2] >= _EIGEN_FORWARD:
        return _by_eigen(x, kernel, padding, x.shape[2])
    return _by_xla(x, kernel, strides, padding)


def _gradient_of_input(x, kernel, gradient, strides, padding):
    height, width = x.shape[1:3]
    if _is_pointwise(kernel, padding):
        product = _contract(gradient, kernel[0, 0], 3, 1)
        ends = [
            (0, side - (n - 1) * s - 1, s - 1)
            for side, n, s in zip((height, width), gradient.shape[1:3], strides, strict=True)
        ]
        return lax.pad(product, product.dtype.type(0), ((0, 0, 0), *ends, (0, 0, 0)))
    (top, _), (left, _) = padding
    is_tiny = math.prod(gradient.shape[1:3]) <= _TINY_MAP
    if is_tiny or (strides == (1, 1) and height * width <= _SMALL_MAP):
        products = lax.optimization_barrier(_contract(gradient, kernel, 3, 3))
        return sum(
            _place(
                _place(products[:, :, :, i, j], 1, i - top, height, strides[0]),
                *(2, j - left, width, strides[1]),
            )
            for i, j in itertools.product(*map(range, kernel.shape[:2]))
        )
    if strides == (1, 1) and kernel.shape[3] >= _EIGEN_GRADIENT:
        sides = zip(kernel.shape[:2], padding, strict=True)
        mirrored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        padding = [(n - 1 - low, n - 1 - high) for n, (low, high) in sides]
        return _by_eigen(gradient, mirrored, padding, width)
    forward = partial(_by_xla, kernel=kernel, strides=strides, padding=padding)
    return jax.linear_transpose(forward, x)(gradient)[0]


def _gradient_of_kernel(x, kernel, gradient, strides, padding):
    if _is_pointwise(kernel, padding):
        x = lax.optimization_barrier(x[:, :: strides[0], :: strides[1]])
        return _sum_products(x, gradient)[None, None]
    products = partial(
        _products_by_row, shape=kernel.shape, strides=strides, starts=[low for low, _ in padding]
    )
    batch = x.shape[0]
    if isinstance(batch, int):
        work = math.prod(kernel.shape[2:]) * math.prod(gradient.shape[:3])
        if kernel.shape[2] > _IMAGE_CHANNELS and work <= _XLA_GRADIENT:
            forward = partial(_by_xla, x, strides=strides, padding=padding)
            return jax.linear_transpose(forward, kernel)(gradient)[0]
        # An image and the copies that its products need. A block also outweighs the sum it is added to.
        size = 7 * min(math.prod(x.shape[1:]), math.prod(gradient.shape[1:]))
        bytes_of_image = x.dtype.itemsize * size
        block = max(_BLOCK_BYTES, 4 * kernel.nbytes) // bytes_of_image
        if _WHOLE_BLOCKS * block < batch:
            blocks = [in_blocks(array, max(1, block)) for array in (x, gradient)]
            return jnp.sum(lax.map(lambda block: products(*block), blocks), axis=0)
    return products(x, gradient)


def _products_by_row(x, gradient, shape, strides, starts):
    """Returns the gradient of a kernel, one product for each row of the kernel.

    The columns of the kernel are put side by side as channels. They are columns of the gradient, if the
    stride is 1 and the gradient has no more channels than the images.
    """
    height, width, channels, features = shape
    (top, left), (rows, columns) = starts, gradient.shape[1:3]
    if strides == (1, 1) and features <= channels:
        shifted = [_cut(gradient, 2, left - j, x.shape[2]) for j in range(width)]
        shifted = lax.optimization_barrier(jnp.concatenate(shifted, axis=-1))
        row_of = [lax.optimization_barrier(_cut(x, 1, i - top, rows)) for i in range(height)]
        products = jnp.stack([_sum_products(row, shifted) for row in row_of])
        return products.reshape(height, channels, width, features).swapaxes(1, 2)
    found = []
    for i in range(height):
        row = _cut(x, 1, i - top, rows, strides[0])
        cut = [_cut(row, 2, j - left, columns, strides[1]) for j in range(width)]
        found.append(_sum_products(lax.optimization_barrier(jnp.concatenate(cut, -1)), gradient))
    return jnp.stack(found).reshape(shape)


def _is_pointwise(kernel, padding):
    return kernel.shape[:2] == (1, 1) and all(x == 0 for sides in padding for x in sides)


def _cut(x, axis, start, size, stride=1):
    """Returns the places start, start + stride, ... of an axis, `size` of them, with zeros outside."""
    stop = start + stride * (size - 1) + 1
    low, high = max(0, -start), max(0, stop - x.shape[axis])
    sides = [(low, high, 0) if n == axis else (0, 0, 0) for n in range(x.ndim)]
    return lax.slice_in_dim(
        lax.pad(x, x.dtype.type(0), sides), start + low, stop + low, stride, axis
    )


def _patches(x, kernel, strides, padding):
    """Yields for each place of a kernel what it is multiplied by, [B, H', W', C]; zeros are outside."""
    (top, _), (left, _) = padding
    height, width = _result_sides(x, kernel, strides, padding)
    for i, j in itertools.product(*map(range, kernel.shape[:2])):
        yield _cut(_cut(x, 1, i - top, height, strides[0]), 2, j - left, width, strides[1])


def _place(x, axis, start, size, stride):
    """Inverts `_cut`: x is at start, start + stride, ... of an axis of this size, among zeros."""
    stop = start + stride * (x.shape[axis] - 1) + 1
    sides = [(start, size - stop, stride - 1) if n == axis else (0, 0, 0) for n in range(x.ndim)]
    return lax.pad(x, x.dtype.type(0), sides)


def _contract(x, y, axis_of_x, axis_of_y):
    return lax.dot_general(x, y, (((axis_of_x,), (axis_of_y,)), ((), ())))


def _sum_products(x, y):
    """[..., C] and [..., F] -> [C, F], summed over all other axes."""
    x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
    return _contract(x, y, 0, 0)
