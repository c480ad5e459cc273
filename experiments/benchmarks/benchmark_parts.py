"""What a batch costs that is embedded in parts: memory and time of the training step.

    python experiments/benchmarks/benchmark_parts.py [--rounds 3] [--width 32]

ResNet-18 on grey faces of 48 px, the step of configs/default.py: a batch of 128, one of 1,024, and
1,024 in parts of 128 (`data.micro_batch`). Each turn is a process of its own; printed are medians over
rounds of milliseconds an image and of the peak memory above that of imports, both also as ratios to the
batch of 128, and what XLA plans for intermediate results. Rows go to results/parts.csv.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))

import jax
from benchmark_loss import kilobytes, timed
from benchmark_training import Network, prepare_ours

# Images of a batch, and of its parts (0: none).
SETTINGS = ((128, 0), (1024, 128), (1024, 0))
WARM_UP, STEPS = 2, 3
FIELDS = ('ms_an_image', 'megabytes', 'planned_megabytes')
RESULTS = Path(__file__).parents[1] / 'results' / 'parts.csv'


def measure(batch, part, width):
    """What one setting costs, in this process."""
    jax.devices()
    before = kilobytes('/proc/self/status', 'VmRSS')
    step, arguments = prepare_ours(Network(width=width), batch, micro_batch=part)
    planned = step.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    state, images = arguments

    def run():
        nonlocal state
        state, _ = step(state, images)
        jax.block_until_ready(state)

    for _ in range(WARM_UP):
        run()
    seconds = statistics.median(timed(run) for _ in range(STEPS))
    peak = kilobytes('/proc/self/status', 'VmHWM') - before
    return dict(zip(FIELDS, (1e3 * seconds / batch, peak / 1e3, planned / 1e6), strict=True))


def main():
    """Prints the table, writes the csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--width', type=int, default=32, help='channels of the first stage')
    parser.add_argument('--measure', type=int, help='number of the setting to measure here')
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(*SETTINGS[arguments.measure], arguments.width)))
        return
    found = [[] for _ in SETTINGS]
    for _ in range(arguments.rounds):
        for number, rows in enumerate(found):
            command = [sys.executable, __file__, f'--width={arguments.width}']
            output = subprocess.check_output([*command, f'--measure={number}'], text=True)
            rows.append(json.loads(output.splitlines()[-1]))
    medians = [[statistics.median(row[x] for row in rows) for x in FIELDS] for rows in found]
    with RESULTS.open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(('batch', 'part', *FIELDS))
        writer.writerows((*s, *m) for s, m in zip(SETTINGS, medians, strict=True))
    print(f'jax {jax.__version__}, width {arguments.width}, medians of {arguments.rounds} rounds')
    print('| batch | in parts of | ms an image | peak MB | MB planned |\n|---|---|---|---|---|')
    for (batch, part), values in zip(SETTINGS, medians, strict=True):
        cells = (f'{x:.4g} ({x / first:.2f})' for x, first in zip(values, medians[0], strict=True))
        print(f'| {batch} | {part or batch} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
