"""What does a second start gain, and what does the host do beside the steps?

    python experiments/benchmarks/benchmark_start.py [--rounds 3] [--steps 60] [--config quickstart]

Trains for some steps, each time in a process of its own: with an empty cache of compiled programs, and
again with what the first has left there. Printed are, as medians, the seconds from the start of the
process to the end of its first step, and the share of the time from there to the last step's end that
passes outside the step: waiting for data, spreading them over devices, logging. Each step is waited for,
so that nothing of it hides behind the next. Rows go to results/start.csv.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
RESULTS = ROOT / 'experiments' / 'results' / 'start.csv'
sys.path.insert(0, str(ROOT))


def measure(config, steps, folder, started):
    """Trains in this process; (seconds to the end of the first step, share outside the steps)."""
    import jax

    from mtdml_jax.cli import train as commands
    from mtdml_jax.config import load_config
    from mtdml_jax.training import loop

    times = []
    make_training = loop.make_training

    def make_timed(*arguments, **options):
        network, state, step = make_training(*arguments, **options)

        def timed_step(*arguments):
            start = time.time()
            found = jax.block_until_ready(step(*arguments))
            times.append((start, time.time()))
            return found

        return network, state, timed_step

    loop.make_training = make_timed
    overrides = {'train.num_steps': steps, 'train.checkpoint_every': steps}
    overrides |= {'data.prepared_dir': folder / 'prepared', 'eval.split': 'validation'}
    commands._start()
    config = load_config(config, [f'--config.{key}={value}' for key, value in overrides.items()])
    with tempfile.TemporaryDirectory() as workdir:
        loop.train(config, Path(workdir))
    first = times[0][1]
    inside = sum(end - start for start, end in times[1:])
    return first - started, 1 - inside / (times[-1][1] - first)


def main():
    """Prints the table, writes the csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--config', default='quickstart')
    parser.add_argument('--measure', nargs=2, metavar=('FOLDER', 'STARTED'), help='in this process')
    arguments = parser.parse_args()
    if arguments.measure:
        folder, started = arguments.measure
        print(json.dumps(measure(arguments.config, arguments.steps, Path(folder), float(started))))
        return
    found = {'first': [], 'second': []}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, f'--config={arguments.config}', '--measure', folder]
        # Prepares the data, which no start after it does.
        subprocess.check_output([*command, '0', '--steps=2'])
        for number in range(arguments.rounds):
            cache = {'JAX_COMPILATION_CACHE_DIR': f'{folder}/cache-{number}'}
            for rows in found.values():
                timed = [*command, str(time.time()), f'--steps={arguments.steps}']
                output = subprocess.check_output(timed, env=os.environ | cache, text=True)
                rows.append(json.loads(output.splitlines()[-1]))
    medians = {start: [*map(statistics.median, zip(*x, strict=True))] for start, x in found.items()}
    with RESULTS.open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(('start', 'seconds_to_first_step', 'share_outside_steps', 'rounds'))
        writer.writerows((start, *x, arguments.rounds) for start, x in medians.items())
    for start, (seconds, share) in medians.items():
        print(
            f'{start} start: {seconds:.1f} s to the end of the first step; {share:.2%} outside steps'
        )


if __name__ == '__main__':
    main()
