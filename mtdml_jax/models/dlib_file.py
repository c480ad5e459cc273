"""Reads dlib_face_recognition_resnet_model_v1.dat without dlib.

dlib writes a network as a stream: integers as a byte of sign and length and little-endian bytes, texts
with their length, and tensors as their shape and little-endian floats. First come the versions of all
layers, from the last to the first. Then come the layers from the first to the last, each with its
settings, its parameters, three flags and three tensors for training, which are empty here. See
`serialize` and dlib/dnn/core.h, layers.h and tensor.h of dlib 20.0.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtdml_jax.models.dlib_resnet import BLOCKS, STEM_FEATURES

EPSILON, DESCRIPTOR_SIZE = 1e-5, 128
# Layers that only name the output of another one, and have nothing in the file but their version.
_NAMES_ONLY = ('tag', 'skip')
# Longest integer of the format, in bytes; longest text of this network.
_INTEGER_BYTES, _TEXT_BYTES = 8, 64


class _Layer(NamedTuple):
    """A layer of the network: its name in the file, and its settings if it is a convolution or pool."""

    kind: str
    settings: tuple[int, ...] = ()


def _layers() -> Iterator[_Layer]:
    """Yields the layers from the first to the last."""

    def conv(features, size, stride, padding):
        yield _Layer('con_4', (features, size, size, stride, stride, padding, padding))
        yield _Layer('affine_')

    yield from conv(STEM_FEATURES, 7, 2, 0)
    yield _Layer('relu_')
    yield _Layer('max_pool_2', (3, 3, 2, 2, 0, 0))
    for features, halves in BLOCKS:
        yield _Layer('tag')
        yield from conv(features, 3, 1 + halves, int(not halves))
        yield _Layer('relu_')
        yield from conv(features, 3, 1, 1)
        if halves:
            yield from (_Layer('tag'), _Layer('skip'), _Layer('avg_pool_2', (2, 2, 2, 2, 0, 0)))
        yield from (_Layer('add_prev_'), _Layer('relu_'))
    yield from (_Layer('avg_pool_2', (0, 0, 1, 1, 0, 0)), _Layer('fc_2'))


class _Stream:
    """The bytes of a file, which are read from the front to the back."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def bytes(self, count):
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise ValueError('it ends early')
        return self.data[start : self.position]

    def integer(self):
        (control,) = self.bytes(1)
        size, is_negative = control & 0x7F, control & 0x80
        if size > _INTEGER_BYTES:
            raise ValueError(f'an integer of {size} bytes')
        value = int.from_bytes(self.bytes(size), 'little')
        return -value if is_negative else value

    def integers(self, count):
        return tuple(self.integer() for _ in range(count))

    def skip_numbers(self, count):
        """Reads floating-point numbers, each of which is a mantissa and an exponent."""
        self.integers(2 * count)

    def expect(self, expected, found, what):
        if found != expected:
            raise ValueError(f'expected {what} {expected!r}, found {found!r}')

    def text(self, expected):
        size = self.integer()
        found = self.bytes(min(max(size, 0), _TEXT_BYTES)).decode('latin1')
        self.expect(expected, found, 'the layer')

    def tensor(self, shape):
        self.expect((2, *shape), self.integers(5), 'a tensor of version and shape')
        return np.frombuffer(self.bytes(4 * math.prod(shape)), '<f4').astype(np.float32)

    def alias(self, shape):
        self.expect((1, *shape), self.integers(5), 'parameters of version and shape')

    def end_of_layer(self):
        self.bytes(3)  # Flags of the training.
        for _ in range(3):
            self.tensor((0, 0, 0, 0))


def read_dlib(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of dlib's network for face recognition.

    Each convolution has no bias, and each scale and shift is a BatchNorm of `EPSILON`: see `DlibResNet`.

    Args:
      path: the file, not compressed.

    Returns:
      {name: float32 array}, with the names of `dlib_resnet.torch_names`, kernels [O, I, H, W], and
      'fc.weight' [128, 256], which turns features into descriptors of persons.

    Raises:
      ValueError: the file holds something else than this network.
      OSError: the file cannot be read.
    """
    stream, arrays = _Stream(path.read_bytes()), {}
    stream.expect(1, stream.integer(), 'version')
    stream.text('loss_metric_2')
    stream.skip_numbers(2)  # The margin, and the distance of two persons.
    layers = list(_layers())
    for layer in reversed(layers):
        version = 3 if layer is layers[0] else 1 if layer.kind in _NAMES_ONLY else 2
        stream.expect(version, stream.integer(), 'a layer of version')
    stream.text('input_rgb_image_sized')
    stream.skip_numbers(3)  # The means that are subtracted, see `dlib_resnet.MEANS`.
    stream.expect((150, 150), stream.integers(2), 'images of the size')
    channels, number = 3, 0
    for layer in layers:
        if layer.kind in _NAMES_ONLY:
            continue
        stream.text(layer.kind)
        match layer.kind:
            case 'con_4':
                kernel, bias = _read_convolution(stream, layer.settings, channels)
                channels = len(kernel)
                arrays[f'conv{number}.weight'] = kernel
            case 'affine_':
                arrays |= {f'bn{number}.{x}': y for x, y in _read_affine(stream, bias).items()}
                number += 1
            case 'fc_2':
                arrays['fc.weight'] = _read_linear(stream, channels)
            case _:
                stream.expect(layer.settings, stream.integers(len(layer.settings)), 'settings')
        stream.end_of_layer()
        if layer is layers[0]:
            stream.expect(1, stream.integer(), 'number of images in place of one')
    stream.expect(len(stream.data), stream.position, 'the end at byte')
    return arrays


def _read_convolution(stream, settings, channels):
    """Returns (kernel [O, I, H, W], bias [O])."""
    features, height, width = settings[:3]
    shape, size = (features, channels, height, width), features * channels * height * width
    values = stream.tensor((size + features, 1, 1, 1))
    stream.expect(settings, stream.integers(len(settings)), 'a convolution with')
    stream.alias(shape)
    stream.alias((1, features, 1, 1))
    stream.skip_numbers(4)  # Factors of the learning rate and of the weight decay.
    return values[:size].reshape(shape), values[size:]


def _read_affine(stream, bias):
    """Returns the arrays of the BatchNorm for a scale, a shift, and the bias before them."""
    size = len(bias)
    scale, shift = stream.tensor((2 * size, 1, 1, 1)).reshape(2, size)
    stream.alias((1, size, 1, 1))
    stream.alias((1, size, 1, 1))
    stream.expect(0, stream.integer(), 'a scale and shift of mode')
    variance = np.full(size, 1 - EPSILON, np.float32)
    return {'weight': scale, 'bias': shift, 'running_mean': -bias, 'running_var': variance}


def _read_linear(stream, channels):
    """Returns the kernel of the last layer, [O, I]."""
    stream.expect((DESCRIPTOR_SIZE, channels), stream.integers(2), 'a linear layer of size')
    shape = (channels, DESCRIPTOR_SIZE, 1, 1)
    values = stream.tensor(shape)
    stream.alias(shape)
    stream.alias((0, 0, 0, 0))
    stream.expect(1, stream.integer(), 'a linear layer of mode')
    stream.skip_numbers(4)
    return values.reshape(channels, DESCRIPTOR_SIZE).T
