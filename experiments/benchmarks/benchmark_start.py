"""What does a second start gain, and what does the host do besides the steps?

    python experiments/benchmarks/benchmark_start.py [--rounds 3] [--steps 60] [--config quickstart]

Trains for some steps in a new process, first with an empty cache of compiled programs and then with the
cache that the first start has filled. Prints, as medians, the seconds from the start of the process to
the end of its first step, and the share of the time between two steps that passes outside the step:
waiting for data, spreading them over devices, logging. The callback waits for each step, so no step
overlaps the next one. The time of a step alone is the median of steps on one batch in the same process.
Adds rows to results/start.csv.
"""

import itertools
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmark_pipeline import prepare
from harness import in_new_process, make_parser, medians_in_turns, timed
from record import record


def measure(name, steps, folder, started=None):
    """Trains in this process; returns the seconds to the end of the first step, and the share."""
    from mtdml_jax.host import process

    process.hasten_imports()
    import jax

    from mtdml_jax.config import load_config
    from mtdml_jax.host.compile_cache import use_compile_cache
    from mtdml_jax.training.loop import train

    overrides = {'train.num_steps': steps, 'train.checkpoint_every': steps}
    overrides |= {'data.prepared_dir': folder / 'prepared', 'eval.split': 'validation'}
    process.show_devices()
    use_compile_cache()
    process.quieten()
    config = load_config(name, [f'--config.{key}={value}' for key, value in overrides.items()])
    ends = []

    def note_end(_, metrics):
        jax.block_until_ready(metrics)
        ends.append(time.time())

    with tempfile.TemporaryDirectory() as workdir:
        train(config, Path(workdir), on_step=note_end)
    _, train_on, batch = prepare(config)
    alone = statistics.median(timed(partial(train_on, [batch])) for _ in range(steps))
    between = statistics.median(end - start for start, end in itertools.pairwise(ends))
    seconds = ends[0] - (started or ends[0])
    return {'seconds_to_first_step': seconds, 'share_outside_steps': 1 - alone / between}


def main():
    """Prints the medians and adds the rows."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--config', default='quickstart')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, number = Path(name), itertools.count()
        # Prepares the data, which no later start does.
        in_new_process(measure, options.config, 2, folder)

        def start():
            # Two starts after each other have the same cache.
            cache = {'JAX_COMPILATION_CACHE_DIR': f'{folder}/cache-{next(number) // 2}'}
            arguments = options.config, options.steps, folder, time.time()
            return in_new_process(measure, *arguments, **cache)

        found = medians_in_turns({'first': start, 'second': start}, options.rounds)
    for name, row in found.items():
        record(options.output, 'start', {'start': name, **row, 'rounds': options.rounds})
        seconds, share = row.values()
        print(f'{name} start: {seconds:.1f} s to the end of the first step; {share:.2%} outside')


if __name__ == '__main__':
    main()
