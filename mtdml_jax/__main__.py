"""Command line: python -m mtdml_jax train --config=FILE --workdir=DIR [--config.key=value ...]."""

import argparse
import os
import re
import shlex
import sys

from mtdml_jax.compile_cache import use_compile_cache
from mtdml_jax.errors import DivergenceError, LostProcessError, UserError, one_line
from mtdml_jax.inference.commands import add_commands, user_path
from mtdml_jax.process import (
    is_first_process,
    join_processes,
    noticing_lost_processes,
    quieten,
    show_devices,
)
from mtdml_jax.system import restart_with_huge_pages

# Commands that run long enough for huge pages to be worth a second start.
TRAINING = ('prepare', 'train', 'evaluate', 'crossval')
# Exit codes; sysexits' EX_IOERR and EX_TEMPFAIL, on which schedulers may start a job again, and the
# shells' of Ctrl-C among them.
DIVERGED, UNWRITABLE, STOPPED, INTERRUPTED = 3, 74, 75, 130


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code.

    0: done; 2: wrong input; 3: a loss that diverged; 74: a disk that is full, or a folder that cannot be
    read or written; 75 (EX_TEMPFAIL): asked to stop and saved, or another process was lost: the same
    command goes on; 130: interrupted by Ctrl-C without saving.

    Args:
      argv: arguments without the program's name; by default the process's.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments, overrides = _parser().parse_known_args(argv)
    command = shlex.join(['python', '-m', 'mtdml_jax', *argv])
    try:
        code = arguments.function(arguments, overrides, command)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Its reader has seen enough, as `| head` has; nothing is left for the flush at Python's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        print('mtdml_jax: interrupted', file=sys.stderr)
        return INTERRUPTED
    except (UserError, DivergenceError, LostProcessError, ModuleNotFoundError, OSError) as error:
        if arguments.debug:
            raise
        text = one_line(str(error))
        if isinstance(error, ModuleNotFoundError):
            extra = 'train' if argv[0] in TRAINING else 'predict'
            text = (
                f"{text}; {argv[0]} takes more than the loss does: pip install 'mtdml_jax[{extra}]'"
            )
        print(f'mtdml_jax: {text}', file=sys.stderr)
        codes = {DivergenceError: DIVERGED, LostProcessError: STOPPED, OSError: UNWRITABLE}
        return next((code for kind, code in codes.items() if isinstance(error, kind)), 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m mtdml_jax',
        description='Multi-threshold deep metric learning in JAX and Flax.',
        epilog='Any key of configs/default.py can follow as --config.section.key=value.',
    )
    common, run, configured = (
        argparse.ArgumentParser(add_help=False, allow_abbrev=False) for _ in range(3)
    )
    common.add_argument('--debug', action='store_true', help='show the traceback of an error')
    run.add_argument('--workdir', type=user_path, required=True, help='folder of the run')
    configured.add_argument(
        '--config', required=True, help='a config file, or one of the package, such as quickstart'
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def add_command(name, function, parents, text):
        command = commands.add_parser(
            name, parents=[common, *parents], allow_abbrev=False, help=text
        )
        command.set_defaults(function=function)
        return command

    add_command('prepare', _prepare, [configured], 'prepare the data set that a config names')
    add_command(
        'crossval', _crossval, [run, configured], 'train and test every fold, write the report'
    )
    train = add_command('train', _train, [run, configured], 'train, evaluate, write the report')
    train.add_argument(
        '--distributed',
        nargs='?',
        const='auto',
        metavar='HOST:PORT,NUM,ID',
        help='one of several processes: as Cloud TPU or Slurm tell, or coordinator, number of '
        'processes and number of this one',
    )
    train.add_argument(
        '--profile',
        type=_steps,
        metavar='FIRST,LAST',
        help='write a trace of these steps into the run, for XProf',
    )
    evaluate = add_command('evaluate', _evaluate, [run], 'evaluate a run on a split')
    evaluate.add_argument(
        '--split', help='train, validation, test, ...; default: config.eval.split'
    )
    add_commands(add_command)
    return parser


def _steps(text):
    """FIRST,LAST -> (first, last)."""
    found = re.fullmatch(r'(\d+),(\d+)', text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(
            f'expected FIRST,LAST, two steps from 1 on, found {text!r}'
        )
    return first, last


def _start():
    """What a command does before it uses a device, or TensorFlow."""
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


def _crossval(arguments, overrides, command) -> int:
    from mtdml_jax.config import load_config

    config = load_config(arguments.config, overrides)
    _start()
    from mtdml_jax.evaluation.crossval import cross_validate

    pooled = cross_validate(config, arguments.workdir, command)
    if pooled is None:
        return _say_stopped()
    print(f'{pooled["num_examples"]} images of {pooled["num_folds"]} folds:')
    _print_accuracies(pooled['classifiers'], arguments.workdir)
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
            return _say_stopped()
        return _finish(config, arguments.workdir, config.eval.split, command)


def _evaluate(arguments, overrides, command) -> int:
    from mtdml_jax.config import apply_overrides, read_config

    config = apply_overrides(read_config(arguments.workdir), overrides)
    _start()
    return _finish(config, arguments.workdir, arguments.split or config.eval.split, command)


def _finish(config, workdir, split, command) -> int:
    """Evaluation and report."""
    from mtdml_jax.evaluation.evaluate import evaluate

    evaluation = evaluate(config, workdir, split, command)
    if not is_first_process():
        return 0
    print(f'{evaluation["num_examples"]} faces of the split {split}:')
    if not evaluation['classifiers']:
        for name, score in evaluation['retrieval'].items():
            print(f'  {name:14s} {score:6.2%}')
    _print_accuracies(evaluation['classifiers'], workdir)
    return 0


def _print_accuracies(classifiers, workdir) -> None:
    for name, scores in classifiers.items():
        low, high = scores['accuracy_ci95']
        print(f'  {name:9s} {scores["accuracy"]:6.2%}  (95 % interval {low:.2%} to {high:.2%})')
    print(f'report: {(workdir / "report.html").absolute()}')


def _say_stopped() -> int:
    if is_first_process():
        print('stopped on request; the same command goes on from here', file=sys.stderr)
    return STOPPED


def run() -> int:
    """`main` as a process of its own: what `python -m mtdml_jax` and the script `mtdml` do."""
    if sys.argv[1:2] and sys.argv[1] in TRAINING:
        restart_with_huge_pages()
    return main()


if __name__ == '__main__':
    sys.exit(run())
