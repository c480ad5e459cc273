"""What does a batch cost that is embedded in micro-batches: memory and time of the training step.

    python experiments/benchmarks/benchmark_parts.py [--rounds 3] [--width 32]

Trains ResNet-18 on grey faces of 48 px with the step of configs/default.py: a batch of 128, a batch of
1,024 in micro-batches of 128 (`data.micro_batch`), and a batch of 1,024 at once. Each turn is a new
process. Prints medians over rounds of the milliseconds an image, of the peak memory above that of the
imports, and of the memory that XLA plans for intermediate results, with ratios to the batch of 128. Adds
rows to results/parts.csv.
"""

import statistics
from functools import partial

from benchmark_training import Network, make_ours
from harness import in_new_process, make_parser, medians_in_turns, memory, record, table, timed

# Images of a batch and of its micro-batches (0: none).
SETTINGS = ((128, 0), (1024, 128), (1024, 0))
WARM_UP, STEPS = 2, 3


def measure(batch, micro_batch, width):
    """Returns what one setting costs in this process."""
    import jax

    jax.devices()
    before = memory()
    run, planned = make_ours(Network(width=width), batch, micro_batch=micro_batch)
    run(WARM_UP)
    seconds = statistics.median(timed(partial(run, 1)) for _ in range(STEPS))
    return {
        'ms_an_image': 1e3 * seconds / batch,
        'megabytes': memory('VmHWM') - before,
        'planned_megabytes': planned() / 1e6,
    }


def main():
    """Prints the table and adds the rows."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument('--width', type=int, default=32, help='channels of the first stage')
    options = parser.parse_args()
    calls = {x: partial(in_new_process, measure, *x, options.width) for x in SETTINGS}
    found = medians_in_turns(calls, options.rounds)
    rows, first = [], found[SETTINGS[0]]
    for (batch, micro_batch), row in found.items():
        record(options.output, 'parts', {'batch': batch, 'part': micro_batch, **row})
        cells = (f'{value:.4g} ({value / first[key]:.2f})' for key, value in row.items())
        rows.append((batch, micro_batch or batch, *cells))
    header = ('batch', 'micro-batch', 'ms an image', 'peak MB', 'MB planned')
    print('\n'.join(table(header, rows)))


if __name__ == '__main__':
    main()
