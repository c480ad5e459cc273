"""The ways in which a run stops with one clear line instead of a traceback."""

import itertools
from collections.abc import Collection, Iterable

# Exit codes besides 0 and 2 (wrong input). 74 and 75 are EX_IOERR and EX_TEMPFAIL of sysexits.h; a
# scheduler may restart a job that ends with them. 130 is the code that shells use for Ctrl-C.
DIVERGED, UNWRITABLE, STOPPED, INTERRUPTED = 3, 74, 75, 130


class UserError(ValueError):
    """Wrong input that the user can correct: a file, a setting, a command. Exit code 2."""


class DivergenceError(RuntimeError):
    """Training cannot continue because the loss is no longer finite. Exit code 3."""


class LostProcessError(RuntimeError):
    """One of several processes of a run has ended; the same command resumes it. Exit code 75."""


def check_choice(key: str, value: object, choices: Collection[object]) -> None:
    """Raises UserError, which lists the choices, if the value of a config key is not one of them."""
    if value not in choices:
        known = ', '.join(map(str, choices))
        raise UserError(f'config.{key}: expected one of {known}, found {value!r}')


def listed(names: Iterable[str], most: int = 5) -> str:
    """Joins the first names for a message: 'a, b, c, d, e, ...'."""
    some = [one_line(name) for name in itertools.islice(names, most + 1)]
    return ', '.join(some[:most] + ['...'] * (len(some) > most))


def one_line(text: str) -> str:
    """Escapes line ends, and bytes that are not UTF-8, as file names may have them."""
    return text.encode('utf-8', 'backslashreplace').decode().replace('\n', '\\n')
