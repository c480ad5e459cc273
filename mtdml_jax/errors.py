"""The two ways in which a run stops with one clear line instead of a traceback."""

from collections.abc import Collection


class UserError(ValueError):
    """Input that the user can put right: a file, a setting, a command. Exit code 2."""


class DivergenceError(RuntimeError):
    """Training that cannot go on: a loss that is no longer finite. Exit code 3."""


def check_choice(key: str, value: object, choices: Collection[object]) -> None:
    """Raises UserError unless the value of the config's key is one of the choices; lists them."""
    if value not in choices:
        known = ', '.join(map(str, choices))
        raise UserError(f'config.{key}: expected one of {known}, found {value!r}')
