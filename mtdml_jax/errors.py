"""The two ways in which a run stops with one clear line instead of a traceback."""


class UserError(ValueError):
    """Input that the user can put right: a file, a setting, a command. Exit code 2."""


class DivergenceError(RuntimeError):
    """Training that cannot go on: a loss that is no longer finite. Exit code 3."""
