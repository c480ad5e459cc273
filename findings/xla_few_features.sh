#!/usr/bin/env bash
# A convolution with one feature more can take a fraction of the time on a CPU.
#
# Versions: jax and jaxlib 0.10.2 with Python 3.11; the same with 0.12.0 and Python 3.12.
# Expectation: 17 features take a little longer than 16.
# Seen: with at most 16 channels and at most 16 features, XLA calls Eigen. With one more of either it calls
#   YNNPACK ('ynn_fusion' in the compiled program). For pictures of one channel YNNPACK is several times
#   as fast, even for twice the features. The printed times are of this machine and decide nothing.
# Source of the choice: none was found in the documentation of XLA or JAX.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet jax==0.10.2 jaxlib==0.10.2
"$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import jax
import jax.numpy as jnp


def compile_convolution(channels, features):
    def convolve(x, kernel):
        names = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=names)

    arrays = jnp.ones((64, 48, 48, channels)), jnp.ones((3, 3, channels, features))
    return jax.jit(convolve).lower(*arrays).compile(), arrays


def measure(program, arrays):
    start = time.perf_counter()
    jax.block_until_ready(program(*arrays))
    return 1e3 * (time.perf_counter() - start)


found = {}
for channels, features in ((1, 16), (1, 17), (1, 32), (16, 16), (17, 16)):
    program, arrays = compile_convolution(channels, features)
    found[channels, features] = 'ynn_fusion' in program.as_text()
    median = statistics.median(measure(program, arrays) for _ in range(20))
    library = 'YNNPACK' if found[channels, features] else 'Eigen'
    print(f'{channels:2} channels, {features:2} features: {library:7} {median:6.2f} ms')
expected = {shape: max(shape) > 16 for shape in found}
sys.exit(0 if found == expected else 'this has changed')
PYTHON
