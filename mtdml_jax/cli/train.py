"""The commands that train and evaluate: prepare, train, evaluate and crossval."""

import argparse
import re
import sys

from mtdml_jax.cli.command import (
    Command,
    add_config,
    add_workdir,
    add_workdir_and_config,
    path_argument,
)
from mtdml_jax.host.compile_cache import use_compile_cache
from mtdml_jax.host.errors import STOPPED
from mtdml_jax.host.process import (
    is_first_process,
    join_processes,
    noticing_lost_processes,
    quieten,
    show_devices,
)


def _add_train(parser):
    add_workdir_and_config(parser)
    parser.add_argument(
        '--distributed',
        nargs='?',
        const='auto',
        metavar='HOST:PORT,NUM,ID',
        help='run as one of several processes: coordinator, number of processes and number of this '
        'process; without a value, Cloud TPU or Slurm must provide them',
    )
    parser.add_argument(
        '--no-evaluate',
        action='store_true',
        help='train only: write no evaluation.json, report.html and model.safetensors',
    )
    parser.add_argument(
        '--profile',
        type=_steps,
        metavar='FIRST,LAST',
        help='write a trace of these steps into the folder of the run, for XProf',
    )


def _add_evaluate(parser):
    add_workdir(parser)
    parser.add_argument('--split', help='train, validation, test, ...; default: config.eval.split')
    parser.add_argument(
        '--out',
        type=path_argument,
        metavar='FOLDER',
        help='folder of the results; default: --workdir',
    )


def _steps(text):
    """Parses 'FIRST,LAST' into (first, last)."""
    found = re.fullmatch(r'(\d+),(\d+)', text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(
            f'expected FIRST,LAST, two steps from 1 on, found {text!r}'
        )
    return first, last


# Commands import the modules that need the extra [train] when they run, so that `--help` works without
# the extra, and starts fast.


def _start():
    """Prepares the process; must come before a command uses a device or imports TensorFlow."""
    show_devices()
    use_compile_cache()
    quieten()


def _prepare(arguments, overrides, command) -> int:
    from mtdml_jax.config import load_config

    data = load_config(arguments.config, overrides).data
    quieten()
    from mtdml_jax.data.prepare import prepare

    info = prepare(data).info
    sizes = ', '.join(f'{name} {split.num_examples:,}' for name, split in info.splits.items())
    print(f'{data.name}: {sizes} images of {", ".join(info.features["label"].names)}')
    return 0


def _train(arguments, overrides, command) -> int:
    from mtdml_jax.config import load_config

    config = load_config(arguments.config, overrides)
    if arguments.distributed:
        join_processes(arguments.distributed)
    _start()
    from mtdml_jax.training.loop import train

    with noticing_lost_processes():
        if not train(config, arguments.workdir, arguments.profile):
            return _report_stopped()
        if arguments.no_evaluate:
            return 0
        return _evaluate_and_print(config, arguments.workdir, config.eval.split, command)


def _evaluate(arguments, overrides, command) -> int:
    from mtdml_jax.config import apply_overrides, read_config

    config = apply_overrides(read_config(arguments.workdir), overrides)
    _start()
    split = arguments.split or config.eval.split
    return _evaluate_and_print(config, arguments.workdir, split, command, arguments.out)


def _evaluate_and_print(config, workdir, split, command, out=None) -> int:
    from mtdml_jax.reports.evaluate import evaluate

    def show(evaluation):
        print(f'{evaluation["num_examples"]} faces of the split {split}:')
        if not evaluation['classifiers']:
            for name, score in evaluation['retrieval'].items():
                print(f'  {name:14s} {score:6.2%}')
        _print_accuracies(evaluation['classifiers'])

    evaluate(config, workdir, split, command, out=out, show=show)
    if is_first_process():
        _print_report(out or workdir)
    return 0


def _crossval(arguments, overrides, command) -> int:
    from mtdml_jax.config import load_config

    config = load_config(arguments.config, overrides)
    _start()
    from mtdml_jax.reports.crossval import cross_validate

    pooled = cross_validate(config, arguments.workdir, command)
    if pooled is None:
        return _report_stopped()
    print(f'{pooled["num_examples"]} images of {pooled["num_folds"]} folds, mean of the folds:')
    _print_accuracies(pooled['classifiers'], 'accuracy_mean')
    _print_report(arguments.workdir)
    return 0


def _print_accuracies(classifiers, score='accuracy') -> None:
    for name, scores in classifiers.items():
        low, high = scores['accuracy_ci95']
        print(f'  {name:9s} {scores[score]:6.2%}  (95 % interval {low:.2%} to {high:.2%})')


def _print_report(folder) -> None:
    print(f'report: {(folder / "report.html").absolute()}')


def _report_stopped() -> int:
    if is_first_process():
        print('stopped on request; the same command goes on from here', file=sys.stderr)
    return STOPPED


PREPARE = Command(
    _prepare, 'prepare the data set that a config names', add_config, is_training=True
)
TRAIN = Command(_train, 'train, evaluate, write the report', _add_train, is_training=True)
EVALUATE = Command(_evaluate, 'evaluate a run on a split', _add_evaluate, is_training=True)
CROSSVAL = Command(
    _crossval,
    'train and test every fold, write the report',
    add_workdir_and_config,
    is_training=True,
)
