"""The two errors that commands answer in one line: of the user, and of the run."""

DONE, FAULTY, WRONG_INPUT = 0, 1, 2  # exit codes


class InputError(ValueError):
    """A mistake in what the user gave: every command shows its message and ends with 2."""

    exit_code = WRONG_INPUT


class FaultError(RuntimeError):
    """What was checked is faulty, or the run failed: commands show the message and end with 1."""

    exit_code = FAULTY
