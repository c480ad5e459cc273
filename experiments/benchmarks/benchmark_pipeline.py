"""How many times faster than the training step is the input pipeline, and does training wait for it?

    python experiments/benchmarks/benchmark_pipeline.py --config=configs/quickstart.py
        [--config.key=value ...]

Times the pipeline alone, training on its batches, and training on one batch again and again, in turns.
Prints images per second (medians), the ratio of pipeline and step, and the share of the time that
training waits for the pipeline. Adds rows to results/data.csv.
"""

import collections
import itertools

from harness import make_parser, medians_in_turns, timed
from record import record

ROUNDS, PIPELINE_BATCHES, STEPS = 5, 200, 10


def rate(consume, batches, count):
    """Batches a second of a function that consumes `count` of them."""
    return count / timed(lambda: consume(itertools.islice(batches, count)))


def prepare(config):
    """Returns (training split, function that trains on batches, a batch)."""
    import jax
    import numpy as np

    from mtdml_jax.data.pipeline import train_batches
    from mtdml_jax.data.protocol import load_protocol_split
    from mtdml_jax.training.devices import make_mapping
    from mtdml_jax.training.setup import make_training

    split = load_protocol_split(config.data, 'train')
    batch = next(train_batches(split, config))
    mapping = make_mapping(config.train.mapping)
    _, state, step = make_training(config, np.bincount(split.labels))
    state = mapping.replicate(state)

    def train_on(batches):
        nonlocal state
        for batch in batches:
            state, _ = step(state, mapping.split(batch))
        jax.block_until_ready(state)

    train_on([batch])
    return split, train_on, batch


def measure(name, overrides, rounds=ROUNDS, num_batches=PIPELINE_BATCHES, num_steps=STEPS):
    """Returns images per second and their ratios for a config."""
    from mtdml_jax.config import load_config
    from mtdml_jax.data.pipeline import train_batches

    config = load_config(name, [*overrides, f'--config.train.num_steps={10**9}'])
    split, train_on, batch = prepare(config)
    starts = itertools.count(0, 10**6)

    def turn():
        batches = train_batches(split, config, start_step=next(starts))
        next(batches)
        pipeline = rate(collections.deque(maxlen=0).extend, batches, num_batches)
        training = rate(train_on, batches, num_steps)
        del batches
        # As in training, each batch comes from the host.
        step = rate(train_on, itertools.repeat(batch), num_steps)
        return {'pipeline': pipeline, 'step': step, 'training': training}

    found = medians_in_turns({'': turn}, rounds)['']
    rates = {key: config.data.batch_size * value for key, value in found.items()}
    ratio, waiting = rates['pipeline'] / rates['step'], 1 - rates['training'] / rates['step']
    return rates | {'ratio': ratio, 'waiting': 100 * waiting}


def main():
    """Prints the rates of a config's pipeline and training step."""
    parser = make_parser(__doc__, ROUNDS, allow_abbrev=False)
    parser.add_argument('--config', default='configs/quickstart.py')
    parser.add_argument('--batches', type=int, default=PIPELINE_BATCHES, help='a round')
    parser.add_argument('--steps', type=int, default=STEPS, help='a round')
    options, overrides = parser.parse_known_args()
    amounts = options.rounds, options.batches, options.steps
    found = measure(options.config, overrides, *amounts)
    rows = {
        f'pipeline of {options.config} alone': ('pipeline', 'images/s'),
        f'training step of {options.config}': ('step', 'images/s'),
        'pipeline over training step': ('ratio', 'times'),
        f'training of {options.config}': ('training', 'images/s'),
        'time that training waits': ('waiting', '%'),
    }
    for what, (key, unit) in rows.items():
        print(f'{what:50} {found[key]:8.1f} {unit}')
        record(options.output, 'data', {'what': what, 'value': found[key], 'unit': unit})


if __name__ == '__main__':
    main()
