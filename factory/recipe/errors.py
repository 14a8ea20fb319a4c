"""The two errors that jobs answer in one line: of the user, and of the run."""


class InputError(ValueError):
    """A mistake in what the user gave; every job answers it with its message and exit code 2."""


class FaultError(RuntimeError):
    """The thing checked is faulty or the run failed; jobs answer it with exit code 1."""
