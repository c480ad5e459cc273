"""The ways in which a run stops with one clear line instead of a traceback."""

import itertools
from collections.abc import Collection, Iterable

# Exit codes beside 0 and 2, of wrong input; sysexits' EX_IOERR and EX_TEMPFAIL, on which schedulers may
# start a job again, and the shells' of Ctrl-C among them.
DIVERGED, UNWRITABLE, STOPPED, INTERRUPTED = 3, 74, 75, 130


class UserError(ValueError):
    """Input that the user can put right: a file, a setting, a command. Exit code 2."""


class DivergenceError(RuntimeError):
    """Training that cannot go on: a loss that is no longer finite. Exit code 3."""


class LostProcessError(RuntimeError):
    """One of several processes of a run has ended; the same command goes on. Exit code 75."""


def check_choice(key: str, value: object, choices: Collection[object]) -> None:
    """Raises UserError unless the value of the config's key is one of the choices; lists them."""
    if value not in choices:
        known = ', '.join(map(str, choices))
        raise UserError(f'config.{key}: expected one of {known}, found {value!r}')


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names for a message, of many the first: 'a, b, c, d, e, ...'."""
    some = [one_line(name) for name in itertools.islice(names, most + 1)]
    return ', '.join(some[:most] + ['...'] * (len(some) > most))


def one_line(text: str) -> str:
    """The text without ends of lines, and with what is no UTF-8 (as in names of files) escaped."""
    return text.encode('utf-8', 'backslashreplace').decode().replace('\n', '\\n')
