"""The two errors that a command shows as one line: a mistake of the user, a failure of the run."""

import errno

DONE, FAULTY, WRONG_INPUT = 0, 1, 2  # exit codes
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})  # of a disk that takes no more


class InputError(ValueError):
    """A mistake in what the user gave: a command shows the message and exits with code 2."""

    exit_code = WRONG_INPUT


class FaultError(RuntimeError):
    """A faulty output or a failed run: a command shows the message and exits with code 1."""

    exit_code = FAULTY
