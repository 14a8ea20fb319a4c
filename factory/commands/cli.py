"""Provide what all jobs share on the command line: arguments, exit codes, error messages."""

import argparse
import atexit
import errno
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from factory import stops
from factory.cluster.ranges import InRanges, alone, over_tasks
from factory.recipe import FaultError, InputError, public
from factory.recipe.errors import DONE, FULL, WRONG_INPUT

OUTPUTS = ("out", "to", "pools", "json", "embeddings", "centres", "materialise", "onnx")
# What a path must be where the system refuses it; other errors of the system are no user's.
ACCEPTED = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "a path that this user may read and write"),
    errno.EISDIR: "a file, not a folder",
    errno.EEXIST: "a folder, or a path that is free",
    errno.ENOTDIR: "a path below folders, not below a file",
}
SHOWN, LONGEST = 60, 800  # characters of a name, of an argument's error
COPIES = "working_dir_files"  # where Ray keeps its copies of submitted working trees
# Jobs import this module first; some then import other modules for seconds.
if Path(getattr(sys.modules["__main__"], "__file__", None) or "").parent.name == "jobs":
    stops.importing()


def parser(doc: str | None, **positional: str) -> argparse.ArgumentParser:
    """Return a job's parser with the arguments that every job has.

    Args:
        doc: the job's docstring, which --help shows.
        positional: names and help texts of the job's positional arguments, in order.
    """
    made = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in positional.items():
        made.add_argument(name, metavar=name.upper(), help=text)
    made.add_argument(
        "--set",
        dest="overrides",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="override a recipe field (repeatable)",
    )
    made.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS", ""),
        help="Ray cluster (default: RAY_ADDRESS, else a local Ray)",
    )
    made.add_argument(
        "--tracking-uri",
        default="",
        help="MLflow tracking server (default: MLFLOW_TRACKING_URI, else a sqlite file)",
    )
    return made


def run(made: argparse.ArgumentParser, job: Callable[[argparse.Namespace], int | None]) -> NoReturn:
    """Parse the command line, run the job and exit.

    The exit code is 0 when the job is done, 1 when it failed or found faults, and 2 when the user's
    input is wrong. Ctrl-C ends the job with 130, SIGTERM with 143 (`factory.stops`). The last line
    of a failure states the exit code, since `ray job submit` only knows 0 and 1.
    """
    arguments = made.parse_args()
    with stops.watched():
        try:
            code = _done(arguments, job)
            if stops.asked():
                stops.finish()
        except BaseException as error:
            # Ray's own handler is installed while Ray starts and raises SystemExit instead.
            if stops.asked() or isinstance(error, KeyboardInterrupt):
                stops.finish()
            raise
        atexit.register(stops.closing, code)
    sys.exit(code)


def _done(arguments: argparse.Namespace, job: Callable[[argparse.Namespace], int | None]) -> int:
    """Run the job and return its exit code."""
    try:
        reads = any(hasattr(arguments, name) for name in ("recipe", "space"))
        if arguments.overrides and not reads:
            raise InputError(f"--set {arguments.overrides[0]}: this job reads no recipe")
        _kept(arguments)
        return job(arguments) or DONE
    except (InputError, FaultError) as error:
        if stops.asked():  # an error that a stop caused is no fault
            raise
        return _say(error.exit_code, error)
    except BrokenPipeError:  # `plan.py RECIPE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        told = None if stops.asked() else _told(error, arguments)
        if told is None:
            raise
        return _say(told.exit_code, told)


def _told(error: OSError, arguments: argparse.Namespace) -> InputError | FaultError | None:
    """Return what a user is told of an error of the system; None where it shows a defect."""
    named = error.filename2 or error.filename
    name = os.fsdecode(named) if isinstance(named, str | bytes) else ""
    if error.errno in FULL:
        given = ((flag, getattr(arguments, flag, "")) for flag in OUTPUTS)
        outputs = ", ".join(f"--{flag} {public(str(value))}" for flag, value in given if value)
        return FaultError(
            f"{name or outputs or 'a disk'}: {error.strerror}; the same command goes on when there "
            "is room to write"
        )
    if error.errno == errno.ENAMETOOLONG:
        shown = f"{name[:SHOWN]}...: a name or path of {len(name)} characters"
        return InputError(f"{shown if name else error.strerror}; accepted is a shorter")
    if name and error.errno in ACCEPTED:
        return InputError(f"{name}: {error.strerror}; accepted is {ACCEPTED[error.errno]}")
    return None


def _kept(arguments: argparse.Namespace) -> None:
    """Refuse outputs in a submitted job's copy of the working tree, which Ray deletes."""
    if COPIES not in Path.cwd().parts:
        return
    for flag in OUTPUTS:
        given = getattr(arguments, flag, "")
        if given and "://" not in given and not Path(given).is_absolute():
            raise InputError(
                f"--{flag} {given}: a submitted job runs in a copy of the working tree, which is "
                "deleted after it; accepted is a URL or an absolute path"
            )


def positive(text: str) -> int:
    """Parse a count of 1 or more; an argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: accepted is 1 or more")
    return int(text)


def spread(arguments: argparse.Namespace) -> InRanges:
    """Return how a job runs over its items: in `--tasks` Ray tasks, or in this process if 0.

    Raises:
        InputError: `--tasks` is negative, or there is no Ray at `--address`.
    """
    if arguments.tasks < 0:
        raise InputError(f"--tasks {arguments.tasks}: accepted is 0 or more")
    if not arguments.tasks:
        return alone
    from factory.cluster.connect import connect

    connect(arguments.address)
    return partial(over_tasks, most=arguments.tasks)


def local(text: str) -> str:
    """Parse the path of an output on this machine's disk, and refuse URLs; an argparse type."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: accepted is a path; this output takes no URL")
    return text


def file(text: str) -> str:
    """Take a file that is written at the end of the work; an argparse type.

    Whether it can be written is asked before the work begins.
    """
    if not text:  # as where it was not asked for: argparse checks defaults as well
        return text
    path = Path(local(text))
    try:
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text}: a folder; accepted is a file")
        if not os.access(path.parent, os.W_OK | os.X_OK) or not path.parent.is_dir():
            raise argparse.ArgumentTypeError(
                f"{text}: {path.parent} is no folder that can be written to; accepted is a file in "
                "one that is there"
            )
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text[:100]}: {error}") from None
    return text


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors are."""

    def error(self, message: str) -> NoReturn:
        """End with the message; --help has what is accepted."""
        if len(message) > LONGEST:
            message = f"{message[:LONGEST]}..."
        said = f"error: {message}; --help tells what is accepted (exit code {WRONG_INPUT})"
        self.exit(WRONG_INPUT, said + "\n")


def show(rows: dict[str, str]) -> None:
    """Print names and their values in two columns, one name per line."""
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def _say(code: int, error: Exception) -> int:
    sys.stdout.flush()
    print(f"error: {error} (exit code {code})", file=sys.stderr, flush=True)
    return code
