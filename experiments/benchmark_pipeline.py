"""How many times faster than the training step is the input pipeline?

    python experiments/benchmark_pipeline.py --config=configs/quickstart.py [--config.key=value ...]

Times both in turns, each alone, and prints images per second (medians) and their ratio.
"""

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from flax import jax_utils

from mtdml_jax.config import load_config
from mtdml_jax.data.pipeline import train_batches
from mtdml_jax.data.protocol import load_part
from mtdml_jax.training.loop import AXIS, make_training, split_over_devices

ROUNDS, PIPELINE_BATCHES, STEPS = 5, 200, 10


def main():
    """Prints the rates of the config's pipeline and training step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', default='configs/quickstart.py')
    arguments, overrides = parser.parse_known_args()
    config = load_config(arguments.config, [*overrides, f'--config.train.num_steps={10**9}'])
    split = load_part(config.data, 'train')
    batch = split_over_devices(next(train_batches(split, config)))
    _, state, step = make_training(config, np.bincount(split.labels))
    state, _ = step(jax_utils.replicate(state, axis_name=AXIS), batch)

    pipeline_rates, step_rates = [], []
    for number in range(ROUNDS):
        batches = train_batches(split, config, start_step=number * PIPELINE_BATCHES)
        next(batches)
        start = time.perf_counter()
        for _ in itertools.islice(batches, PIPELINE_BATCHES):
            pass
        pipeline_rates.append(PIPELINE_BATCHES / (time.perf_counter() - start))
        del batches
        start = time.perf_counter()
        for _ in range(STEPS):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        step_rates.append(STEPS / (time.perf_counter() - start))
    pipeline, step = (
        config.data.batch_size * statistics.median(x) for x in (pipeline_rates, step_rates)
    )
    print(f'pipeline alone  {pipeline:8.0f} images/s')
    print(f'training step   {step:8.0f} images/s')
    print(f'ratio           {pipeline / step:8.1f}')


if __name__ == '__main__':
    main()
