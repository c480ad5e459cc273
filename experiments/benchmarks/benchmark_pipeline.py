"""How many times faster than the training step is the input pipeline, and does training wait for it?

    python experiments/benchmarks/benchmark_pipeline.py --config=configs/quickstart.py
        [--config.key=value ...]

Times both in turns, each alone and then together, and prints images per second (medians), the ratio, and
the share of the time by which training with the pipeline is slower than on one batch over and over.
"""

import argparse
import collections
import itertools
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import jax
import numpy as np
from flax import jax_utils

from mtdml_jax.config import load_config
from mtdml_jax.data.pipeline import train_batches
from mtdml_jax.data.protocol import load_protocol_split
from mtdml_jax.training.step import AXIS, make_training, split_over_devices

ROUNDS, PIPELINE_BATCHES, STEPS = 5, 200, 10


def rate(consume, batches, count):
    """Batches a second of a function that works through `count` of them."""
    start = time.perf_counter()
    consume(itertools.islice(batches, count))
    return count / (time.perf_counter() - start)


def main():
    """Prints the rates of the config's pipeline and training step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--config', default='configs/quickstart.py')
    parser.add_argument('--rounds', type=int, default=ROUNDS)
    parser.add_argument('--batches', type=int, default=PIPELINE_BATCHES, help='a round')
    parser.add_argument('--steps', type=int, default=STEPS, help='a round')
    arguments, overrides = parser.parse_known_args()
    config = load_config(arguments.config, [*overrides, f'--config.train.num_steps={10**9}'])
    split = load_protocol_split(config.data, 'train')
    batch = split_over_devices(next(train_batches(split, config)))
    _, state, step = make_training(config, np.bincount(split.labels))
    state, _ = step(jax_utils.replicate(state, axis_name=AXIS), batch)

    def train_on(batches):
        nonlocal state
        for batch in batches:
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    read = partial(collections.deque, maxlen=0)
    rates = {'pipeline': [], 'step': [], 'training': []}
    for number in range(arguments.rounds):
        batches = train_batches(split, config, start_step=number * 10**6)
        next(batches)
        rates['pipeline'].append(rate(read, batches, arguments.batches))
        fed = map(split_over_devices, batches)
        rates['training'].append(rate(train_on, fed, arguments.steps))
        del batches, fed
        # As in training, a batch comes from the host each time.
        rates['step'].append(rate(train_on, itertools.repeat(batch), arguments.steps))
    found = {name: config.data.batch_size * statistics.median(x) for name, x in rates.items()}
    print(f'pipeline alone  {found["pipeline"]:8.0f} images/s')
    print(f'training step   {found["step"]:8.0f} images/s')
    print(f'ratio           {found["pipeline"] / found["step"]:8.1f}')
    print(f'training        {found["training"]:8.0f} images/s')
    print(f'waiting         {1 - found["training"] / found["step"]:8.1%} of the time')


if __name__ == '__main__':
    main()
