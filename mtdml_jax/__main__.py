"""Command line: python -m mtdml_jax train --config=FILE --workdir=DIR [--config.key=value ...]."""

import argparse
import os
import shlex
import sys

from mtdml_jax.cli import train, use
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
from mtdml_jax.host.process import hasten_imports
from mtdml_jax.host.system import restart_with_huge_pages

COMMANDS: dict[str, Command] = {
    'prepare': train.PREPARE,
    'crossval': train.CROSSVAL,
    'train': train.TRAIN,
    'evaluate': train.EVALUATE,
    'export': use.EXPORT,
    'predict': use.PREDICT,
    'demo': use.DEMO,
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Exit codes:
      0: the command is done.
      2: the input is wrong.
      3: the loss diverged.
      74: the disk is full, or a folder cannot be read or written.
      75 (EX_TEMPFAIL): the run was asked to stop and saved a checkpoint, or another process of the run
        was lost. The same command resumes the run.
      130: Ctrl-C interrupted the command, and nothing was saved.

    Args:
      argv: arguments without the program's name; None for the arguments of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments, overrides = _parser().parse_known_args(argv)
    command = shlex.join(['python', '-m', 'mtdml_jax', *argv])
    try:
        code = COMMANDS[arguments.command_name].run(arguments, overrides, command)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader closed the pipe, as `| head` does. Python flushes stdout at its end, which must not
        # fail, so stdout goes nowhere from now on.
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
        print(f'mtdml_jax: {_message(error, arguments.command_name)}', file=sys.stderr)
        codes = {DivergenceError: DIVERGED, LostProcessError: STOPPED, OSError: UNWRITABLE}
        return next((code for kind, code in codes.items() if isinstance(error, kind)), 2)


def _message(error: Exception, name: str) -> str:
    """Returns an error of the command `name` in one line."""
    text = one_line(str(error))
    if isinstance(error, ModuleNotFoundError):
        extra = 'train' if COMMANDS[name].is_training else 'predict'
        text = f"{text}; {name} needs more packages than the loss: pip install 'mtdml_jax[{extra}]'"
    return text


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
    """Runs `main` for `python -m mtdml_jax` and the script `mtdml`; training may restart the process."""
    command = COMMANDS.get(sys.argv[1]) if sys.argv[1:] else None
    if command and command.is_training:
        restart_with_huge_pages()
    hasten_imports()
    return main()


if __name__ == '__main__':
    sys.exit(run())
