"""Command line: python -m mtdml_jax train --config=FILE --workdir=DIR [--config.key=value ...]."""

import argparse
import os
import shlex
import sys

from mtdml_jax.cli import train as training
from mtdml_jax.cli import use as inference
from mtdml_jax.cli.command import Command
from mtdml_jax.host.errors import (
    DIVERGED,
    INTERRUPTED,
    STOPPED,
    UNWRITABLE,
    DivergenceError,
    LostProcessError,
    UserError,
    one_line,
)
from mtdml_jax.host.system import restart_with_huge_pages

COMMANDS: dict[str, Command] = {
    'prepare': training.PREPARE,
    'crossval': training.CROSSVAL,
    'train': training.TRAIN,
    'evaluate': training.EVALUATE,
    'export': inference.EXPORT,
    'predict': inference.PREDICT,
    'demo': inference.DEMO,
}


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
        code = COMMANDS[arguments.command_name].run(arguments, overrides, command)
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
            name = arguments.command_name
            extra = 'train' if COMMANDS[name].is_training else 'predict'
            text = f"{text}; {name} takes more than the loss does: pip install 'mtdml_jax[{extra}]'"
        print(f'mtdml_jax: {text}', file=sys.stderr)
        codes = {DivergenceError: DIVERGED, LostProcessError: STOPPED, OSError: UNWRITABLE}
        return next((code for kind, code in codes.items() if isinstance(error, kind)), 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m mtdml_jax',
        description='Multi-threshold deep metric learning in JAX and Flax.',
        epilog='Any key of configs/default.py can follow as --config.section.key=value.',
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND', dest='command_name')
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, allow_abbrev=False, help=command.help)
        own.add_argument('--debug', action='store_true', help='show the traceback of an error')
        command.add_arguments(own)
    return parser


def run() -> int:
    """`main` as a process of its own: what `python -m mtdml_jax` and the script `mtdml` do."""
    command = COMMANDS.get(sys.argv[1]) if sys.argv[1:] else None
    if command and command.is_training:
        restart_with_huge_pages()
    return main()


if __name__ == '__main__':
    sys.exit(run())
