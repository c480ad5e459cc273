"""Tests what XLA compiles for the loss and the training step on GPUs and TPUs, without such devices.

    make accelerators

Compiles for one and eight NVIDIA H200s and for four chips of a TPU v5e. This needs JAX's plugins for
them and no device, and runs nothing. The tests check the memory, what the compiled program reads and
writes, and what devices exchange. They print the figures.
"""

import math
import os
import re
import sys
from pathlib import Path

# The variables TPU_ describe the host of the chips. Without them JAX asks a server of Google.
os.environ |= {
    'JAX_PLATFORMS': 'cpu',
    'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
}

sys.path.insert(0, str(Path(__file__).absolute().parents[2] / 'experiments' / 'benchmarks'))

import jax
import pytest
import scaling
from jax.experimental import topologies

# The values, in bytes, bytes/s and GHz, are from NVIDIA's data sheet and CUDA's limits of compute
# capability 9.0.
H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000
  device_memory_size: 150000000000
  l2_cache_size: 62914560
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""
ROWS = scaling.LOSS_BATCH
# A tile is the ROWS x ROWS distances of one slice in float32.
TILE_BYTES = 4 * ROWS**2


@pytest.fixture(scope='module')
def gpus():
    """Eight H200s."""
    return topologies.get_topology_desc(
        platform='cuda', target_config=H200, topology='1x1x8'
    ).devices


@pytest.fixture(scope='module')
def gpu(gpus):
    """One of the H200s, as a list."""
    return gpus[:1]


@pytest.fixture(scope='module')
def tpu():
    """Four chips of a TPU v5e."""
    return topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices


@pytest.fixture(params=['gpu', 'tpu'])
def devices(request):
    """The devices of each platform in turn."""
    return request.getfixturevalue(request.param)


def compile_for(devices, trace, *arguments):
    """Compiles for devices what a function of scaling.py traces.

    Returns:
      (compiled program, shapes of its inputs).
    """
    step, shapes, _ = trace(*arguments, len(devices), devices)
    return step.lower(*shapes).compile(), shapes


def kernels(compiled):
    """Maps the name of each kernel to (shapes that it writes, names of its operands)."""
    found, fused = {}, False
    for line in compiled.as_text().splitlines():
        if line.endswith('{'):
            fused = 'fused' in line or 'gemm_fusion' in line
        matched = re.match(r' +(?:ROOT )?%(\S+) = (.*?) ([a-z-]+)\((.*?)\)', line)
        if matched and not fused:
            name, written, _, operands = matched.groups()
            shapes = re.findall(r'\w+\[[\d,]*\]', written)
            found[name] = shapes, re.findall(r'%([^\s,()]+)', operands)
    return found


def report(name, compiled):
    """Prints and returns the memory of a program beyond its inputs, in bytes."""
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f'{name}: {temporary / 1e6:.0f} MB beyond inputs and outputs')
    return temporary


def test_memory_of_the_loss_is_less_than_two_tiles_of_distances(devices):
    """That is at most a tenth of what pytorch-metric-learning takes on a CPU."""
    compiled, _ = compile_for(devices, scaling.loss_alone)
    name = f'gradient of the loss, {ROWS} rows, {len(devices)} x {devices[0].device_kind}'
    assert report(name, compiled) < 2 * TILE_BYTES


def test_on_a_gpu_one_kernel_reads_all_distances_and_another_those_of_a_block(gpu):
    """One reading gives both maxima of the blocks, and leaves 32 candidates a column."""
    written = kernels(compile_for(gpu, scaling.loss_alone)[0])
    tile = f'f32[{ROWS},{ROWS}]'
    (products,) = (name for name, (shapes, _) in written.items() if shapes == [tile])
    readers = [shapes for shapes, operands in written.values() if products in operands]
    blocks, candidates = f'f32[{ROWS // 32},{ROWS}]', f's32[32,{ROWS}]'
    assert sorted(readers) == sorted([[blocks, blocks], [candidates, candidates]])


@pytest.mark.parametrize('several', ['gpus', 'tpu'])
def test_devices_swap_slices_instead_of_gathering_embeddings(several, request):
    """As on CPUs, devices gather labels, masks and weights and nothing else."""
    program = compile_for(request.getfixturevalue(several), scaling.loss_alone)[0].as_text()
    swaps = re.findall(r' all-to-all(?:-start)?\(', program)
    assert len(swaps) == 2  # forward, and backward for the gradient
    gathered = re.findall(r'= \w+\[([\d,]*)\]\S* all-gather', program)
    assert all(math.prod(map(int, shape.split(','))) == ROWS for shape in gathered)


def test_training_step_overwrites_its_state_and_convolves_in_bfloat16(devices, monkeypatch):
    """The network of the recipe for GPUs has half the layers and a quarter of the width here."""
    settings = 'model.dtype=bfloat16', 'model.backbone=resnet10', 'model.width_factor=0.25'
    monkeypatch.setitem(scaling.CASES, 'small', ('fer2013_gpu', 32, *settings))
    compiled, (state, _) = compile_for(devices, scaling.training, 'small')
    report(f'step of resnet10, {len(devices)} x {devices[0].device_kind}', compiled)
    state_bytes = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in jax.tree.leaves(state))
    # The state is larger on a TPU, because arrays are padded.
    assert compiled.memory_analysis().alias_size_in_bytes >= state_bytes
    convolution = r'= \(?(\w+)\[[^=]* (?:convolution|custom-call)\(.*conv_general_dilated'
    outputs = re.findall(convolution, compiled.as_text())
    assert (
        len(outputs) == 3 * 12 - 1
    )  # 12 layers with two gradients each, without that of the image
    assert set(outputs) == {'bf16'}
