"""One of several processes that compute losses and gradients of the global batch with each exchange.

    python exchange_worker.py HOST:PORT NUM_PROCESSES PROCESS_ID DEVICES_A_PROCESS OUTPUT.npz

Tests also import this file as a module, for the cases and the step.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mtdml_jax import multi_threshold_loss
from mtdml_jax.loss.multi_threshold import MININGS

# Eight devices swap 8 slices (all-to-all) and gather 3 (all-gather).
CASES = {f'{mining} {num}': (mining, num) for mining in MININGS for num in (8, 3)}
# One case of each exchange. The other minings exchange rows in the same way as 'hard'.
EXCHANGES = [name for name in CASES if name.startswith(('hard', 'all'))]


def uneven_batch(num_slices):
    """Returns (network, inputs, weights, labels, mask): 16 rows ordered by class, two for each device.

    Four of the last rows are padding.
    """
    rng = np.random.default_rng(7)
    labels = np.repeat(np.arange(4, dtype=np.int32), (7, 5, 3, 1))
    mask = np.isin(np.arange(16), [9, 12, 14, 15], invert=True)
    network, inputs = rng.normal(size=(4, 2 * num_slices)), rng.normal(size=(16, 4))
    weights = rng.uniform(0.2, 2.0, size=16)
    return *map(np.float32, (network, inputs, weights)), labels, mask


def step(network, inputs, weights, labels, mask, *, mining, num_slices, axis_name=None, **options):
    """Returns (loss, aux, gradient by the weights) of a linear network, as in a training step."""

    def loss_of(network):
        return multi_threshold_loss(
            inputs @ network,
            labels,
            jnp.linspace(0.2, 1.3, num_slices),
            mining=mining,
            softness=0.3,
            weights=weights,
            mask=mask,
            axis_name=axis_name,
            **options,
        )

    (loss, aux), gradient = jax.value_and_grad(loss_of, has_aux=True)(network)
    return loss, aux, gradient if axis_name is None else jax.lax.pmean(gradient, axis_name)


def pmapped(name):
    """Returns the step of a case, mapped over all devices of all processes."""
    mining, num_slices = CASES[name]
    mapped = partial(step, mining=mining, num_slices=num_slices, axis_name='batch')
    return jax.pmap(mapped, axis_name='batch', in_axes=(None, 0, 0, 0, 0))


def on_devices(array, num_devices):
    """Reshapes [16, ...] to [num_devices, 16 / num_devices, ...]."""
    return array.reshape(num_devices, -1, *array.shape[1:])


def main(address, num_processes, process_id, local_devices, output):
    """Writes the results of each exchange on the first local device to the file."""
    jax.config.update('jax_num_cpu_devices', local_devices)
    jax.distributed.initialize(address, num_processes, process_id)
    mine = slice(process_id * local_devices, (process_id + 1) * local_devices)
    results = {}
    for name in EXCHANGES:
        network, *batch = uneven_batch(CASES[name][1])
        shards = [on_devices(x, num_processes * local_devices)[mine] for x in batch]
        leaves = jax.tree.leaves(pmapped(name)(network, *shards))
        results |= {f'{name} {i}': x.addressable_shards[0].data[0] for i, x in enumerate(leaves)}
    np.savez(output, **results)


if __name__ == '__main__':
    address, *numbers, output = sys.argv[1:]
    main(address, *map(int, numbers), output)
