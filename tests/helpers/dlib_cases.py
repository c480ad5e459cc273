"""dlib's network for face recognition: a file of it in dlib's format, and its layers in NumPy."""

import numpy as np
from backbone_files import convolve

# Channels of each block, and whether it halves the map.
BLOCKS = [(32, 0)] * 3 + [(64, 1)] + [(64, 0)] * 3 + [(128, 1)] + [(128, 0)] * 2
BLOCKS += [(256, 1)] + [(256, 0)] * 2 + [(256, 1)]
EMPTY = (0, 0, 0, 0)


def integer(*values):
    """dlib's integers: a byte of the number of bytes, 128 more if negative, and the bytes."""
    found = b''
    for value in values:
        size = max(1, (abs(value).bit_length() + 7) // 8)
        found += bytes([size + 128 * (value < 0)]) + abs(value).to_bytes(size, 'little')
    return found


def text(value):
    return integer(len(value)) + value.encode()


def tensor(values, *shape):
    return integer(2, *shape) + np.asarray(values, '<f4').tobytes()


def layer(name, *settings):
    """A layer without parameters."""
    return text(name) + integer(*settings) + end()


def end():
    return b'110' + 3 * tensor([], *EMPTY)


def convolution(kernel, bias, stride, padding):
    features, _, *sides = kernel.shape
    values = np.concatenate([kernel.reshape(-1), bias])
    settings = integer(features, *sides, stride, stride, padding, padding)
    aliases = integer(1, *kernel.shape) + integer(1, 1, features, 1, 1)
    rates = 3 * integer(16, -4) + integer(0, 11)
    return text('con_4') + tensor(values, len(values), 1, 1, 1) + settings + aliases + rates + end()


def affine(scale, shift):
    values = tensor(np.concatenate([scale, shift]), 2 * len(scale), 1, 1, 1)
    return text('affine_') + values + 2 * integer(1, 1, len(scale), 1, 1) + integer(0) + end()


def random_parameters(seed=0):
    """(kernels, biases, scales, shifts) of the 29 convolutions, and the last layer's weights."""
    rng = np.random.default_rng(seed)
    kernels, channels = [rng.normal(size=(32, 3, 7, 7), scale=0.1)], 32
    for features, _ in BLOCKS:
        for inputs in (channels, features):
            kernels.append(rng.normal(size=(features, inputs, 3, 3), scale=(9 * inputs) ** -0.5))
        channels = features
    vectors = [[rng.uniform(0.5, 1.5, len(x)) for x in kernels] for _ in range(3)]
    return (
        *([x.astype(np.float32) for x in y] for y in (kernels, *vectors)),
        rng.normal(size=(256, 128)),
    )


def file_of_dlib(kernels, biases, scales, shifts, weights):
    """The bytes of the file."""
    versions, parts = [], [text('input_rgb_image_sized') + 3 * integer(7, 4) + integer(150, 150)]

    def add(*layers):
        versions.extend(2 for _ in layers)
        parts.extend(layers)

    def tags(count):
        versions.extend([1] * count)

    def convolve_and_scale(number, stride, padding):
        values = (x[number] for x in (kernels, biases, scales, shifts))
        kernel, bias, scale, shift = values
        add(convolution(kernel, bias, stride, padding), affine(scale, shift))

    convolve_and_scale(0, 2, 0)
    parts[1] += integer(1)  # The first layer has one number more.
    add(layer('relu_'), layer('max_pool_2', 3, 3, 2, 2, 0, 0))
    for block, (_, halves) in enumerate(BLOCKS):
        tags(1)
        convolve_and_scale(2 * block + 1, 1 + halves, 1 - halves)
        add(layer('relu_'))
        convolve_and_scale(2 * block + 2, 1, 1)
        if halves:
            tags(2)
            add(layer('avg_pool_2', 2, 2, 2, 2, 0, 0))
        add(layer('add_prev_'), layer('relu_'))
    add(layer('avg_pool_2', 0, 0, 1, 1, 0, 0))
    aliases = integer(1, 256, 128, 1, 1) + integer(1, *EMPTY) + integer(1)
    rates = 3 * integer(16, -4) + integer(0, 11)
    add(
        text('fc_2') + integer(128, 256) + tensor(weights, 256, 128, 1, 1) + aliases + rates + end()
    )
    versions[0] = 3
    head = integer(1) + text('loss_metric_2') + 2 * integer(5, -3)
    return head + integer(*reversed(versions)) + b''.join(parts)


def features_in_numpy(x, arrays):
    """Features of images [N, C, H, W] by the arrays of a file with a BatchNorm for each scale."""

    def scaled(x, number):
        scale, shift, mean, variance = (
            arrays[f'bn{number}.{key}'][:, None, None]
            for key in ('weight', 'bias', 'running_mean', 'running_var')
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift

    def valid(x, kernel, stride):
        """A convolution without padding; a side that is too short is padded by 1."""
        short = [(1, 1) if side < kernel.shape[2] else (0, 0) for side in x.shape[2:]]
        size = kernel.shape[2] // 2
        x = convolve(np.pad(x, [(0, 0), (0, 0), *short]), kernel, 1)
        return x[:, :, size : x.shape[2] - size : stride, size : x.shape[3] - size : stride]

    def grown(x, shape):
        y = np.zeros(shape, x.dtype)
        y[:, : x.shape[1], : x.shape[2], : x.shape[3]] = x
        return y

    x = np.maximum(scaled(valid(x, arrays['conv0.weight'], 2), 0), 0)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    x = windows[:, :, ::2, ::2].max(axis=(4, 5))
    for block, (_, halves) in enumerate(BLOCKS):
        first, second = (arrays[f'conv{2 * block + i}.weight'] for i in (1, 2))
        y = valid(x, first, 2) if halves else convolve(x, first, 1)
        y = convolve(np.maximum(scaled(y, 2 * block + 1), 0), second, 1)
        y = scaled(y, 2 * block + 2)
        if halves:
            rows, columns = (max(1, side // 2) for side in x.shape[2:])
            x = np.stack(
                [
                    np.stack(
                        [
                            x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
                            for j in range(columns)
                        ],
                        -1,
                    )
                    for i in range(rows)
                ],
                -2,
            )
        shape = tuple(map(max, x.shape, y.shape))
        x = np.maximum(grown(x, shape) + grown(y, shape), 0)
    return x.mean(axis=(2, 3))
