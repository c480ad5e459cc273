"""What a command of the command line is, and the arguments that several of them take."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtdml_jax.host.errors import UserError
from mtdml_jax.host.paths import user_path


class Command(NamedTuple):
    """A command, `python -m mtdml_jax NAME ...`; its name stands in `mtdml_jax.__main__.COMMANDS`.

    Attributes:
      run: function (arguments, overrides, command) -> exit code, of what argparse understood, the
        arguments that it did not know, such as --config.seed=1, and the whole command as text.
      help: what it does, in one line.
      add_arguments: adds its arguments to its parser.
      is_training: whether it needs the extra [train], and runs long enough for huge pages to be worth a
        second start.
    """

    run: Callable[[Any, Sequence[str], str], int]
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None
    is_training: bool = False


def path_argument(text: str) -> Path:
    """`user_path`, as argparse wants its errors."""
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
    """Adds both."""
    add_workdir(parser)
    add_config(parser)
