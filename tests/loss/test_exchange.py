"""Losses and gradients over several devices against one device on the same batch."""

import os
import re
import socket
import subprocess
import sys
from functools import cache, partial
from itertools import product
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import reference
from exchange_worker import CASES, EXCHANGES, on_devices, pmapped, step, uneven_batch

from mtdml_jax import multi_threshold_loss

DEVICES = 8
THRESHOLDS = np.array([0.1, 0.6, 1.1])


def jitted(name, *batch):
    mining, num_slices = CASES[name]
    return jax.jit(partial(step, mining=mining, num_slices=num_slices))(*batch)


@cache
def on_one_device(name):
    return jitted(name, *uneven_batch(CASES[name][1]))


def by_pmap(name, network, *batch):
    outputs = pmapped(name)(network, *(on_devices(x, DEVICES) for x in batch))
    outputs = jax.tree.map(np.asarray, outputs)
    first, *others = (jax.tree.map(lambda x, d=d: x[d], outputs) for d in range(DEVICES))
    for other in others:
        chex.assert_trees_all_equal(other, first)
    return first


def by_shard_map(name, *batch):
    mining, num_slices = CASES[name]
    mapped = partial(step, mining=mining, num_slices=num_slices, axis_name='batch')
    mesh = jax.sharding.Mesh(jax.devices(), 'batch')
    specs = {'in_specs': (jax.P(), *[jax.P('batch')] * 4), 'out_specs': jax.P()}
    return jax.jit(jax.shard_map(mapped, mesh=mesh, **specs))(*batch)


def by_jit_of_spread_rows(name, network, *batch):
    mesh = jax.sharding.Mesh(jax.devices(), 'batch')
    rows = jax.sharding.NamedSharding(mesh, jax.P('batch'))
    return jitted(name, network, *jax.device_put(batch, rows))


@pytest.mark.parametrize(
    ('parallel', 'name'),
    [
        *product([by_pmap], EXCHANGES),
        *(
            pytest.param(parallel, name, marks=pytest.mark.slow)
            for parallel, name in [
                *product([by_pmap], sorted({*CASES} - {*EXCHANGES})),
                *product([by_shard_map, by_jit_of_spread_rows], EXCHANGES),
            ]
        ),
    ],
)
def test_eight_devices_equal_one_in_loss_aux_and_gradient(parallel, name):
    found = parallel(name, *uneven_batch(CASES[name][1]))
    chex.assert_trees_all_close(found, on_one_device(name), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_two_processes_of_four_devices_equal_one_device(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    worker = Path(__file__).parents[1] / 'helpers' / 'exchange_worker.py'
    environment = {k: v for k, v in os.environ.items() if k != 'JAX_NUM_CPU_DEVICES'}
    environment |= {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(worker.parents[2])}
    files = [tmp_path / f'{number}.npz' for number in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, worker, address, '2', str(number), '4', file], env=environment
        )
        for number, file in enumerate(files)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = map(np.load, files)
    for name in EXCHANGES:
        for number, leaf in enumerate(jax.tree.leaves(on_one_device(name))):
            found = first[f'{name} {number}']
            np.testing.assert_allclose(found, leaf, rtol=1e-6, atol=1e-6, err_msg=name)
            np.testing.assert_array_equal(found, second[f'{name} {number}'], err_msg=name)


@pytest.mark.parametrize(
    ('num_slices', 'operation', 'other'),
    [(8, 'all_to_all', 'all_gather'), (3, 'all_gather', 'all_to_all')],
)
def test_embeddings_cross_devices_by_the_cheaper_operation(num_slices, operation, other):
    name = f'hard {num_slices}'
    network, *batch = uneven_batch(num_slices)
    shards = [on_devices(x, DEVICES) for x in batch]
    program = str(jax.make_jaxpr(pmapped(name))(network, *shards))
    # Slices have two numbers each, and every device two rows.
    moved = {
        kind: re.findall(rf'f32\[(\d+,\d+,2)\] = {kind}\[', program)
        for kind in ('all_to_all', 'all_gather')
    }
    assert moved[operation]
    assert not moved[other]


def test_mean_of_the_devices_means_would_be_another_loss():
    network, inputs, _, labels, mask = uneven_batch(3)
    terms = reference.loss_terms(inputs @ network, labels, THRESHOLDS, mask=mask)
    per_device = [
        reference.mean(loss for row, loss in s.losses.items() if row // 2 == device)
        for s, device in product(terms, range(DEVICES))
    ]
    assert abs(np.mean(per_device) - reference.reduce(terms, 'mean', 16)) > 0.01


@pytest.mark.parametrize('num_slices', [3, 8])
def test_unreduced_losses_stay_on_the_devices_of_their_anchors(num_slices):
    network, inputs, _, labels, _ = uneven_batch(num_slices)
    thresholds = np.linspace(0.2, 1.3, num_slices)
    terms = reference.loss_terms(inputs @ network, labels, thresholds)
    options = {'thresholds': thresholds, 'axis_name': 'batch', 'reduction': 'none'}
    mapped = jax.pmap(partial(multi_threshold_loss, **options), axis_name='batch')
    losses, _ = mapped(on_devices(inputs @ network, DEVICES), on_devices(labels, DEVICES))
    expected = reference.reduce(terms, 'none', 16)
    np.testing.assert_allclose(np.concatenate(losses, axis=1), expected, atol=1e-5)
