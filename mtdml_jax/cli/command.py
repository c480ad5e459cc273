"""What a command of the command line is, and the arguments that several commands share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtdml_jax.host.errors import UserError
from mtdml_jax.host.paths import user_path


class Command(NamedTuple):
    """A command, `python -m mtdml_jax NAME ...`. `mtdml_jax.__main__.COMMANDS` has its name.

    Attributes:
      run: a function (arguments, overrides, command) -> exit code. It takes the arguments that argparse
        parsed, the arguments that argparse does not know, such as --config.seed=1, and the whole command
        as text.
      help: what the command does, in one line.
      add_arguments: a function that adds the command's arguments to its parser.
      is_training: whether the command needs the extra [train], and runs long enough for a restart with
        huge pages to pay off.
    """

    run: Callable[[Any, Sequence[str], str], int]
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None
    is_training: bool = False


def path_argument(text: str) -> Path:
    """Returns `user_path` of an argument; raises the error that argparse expects."""
    try:
        return user_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_workdir(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir."""
    parser.add_argument('--workdir', type=path_argument, required=True, help='folder of the run')


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config."""
    parser.add_argument(
        '--config', required=True, help='a config file, or one of the package, such as quickstart'
    )


def add_workdir_and_config(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir and --config."""
    add_workdir(parser)
    add_config(parser)
