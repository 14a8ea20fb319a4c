"""What all jobs share on the command line: arguments, exit codes, error messages."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from factory.recipe import InputError

DONE, FAULTY, WRONG_INPUT = 0, 1, 2


class FaultError(RuntimeError):
    """The thing checked is faulty or the run failed; jobs answer it with exit code 1."""


def parser(doc: str | None, **positional: str) -> argparse.ArgumentParser:
    """Return a job's parser with the arguments every job has.

    Args:
        doc: the job's docstring, shown by --help.
        positional: names and help texts of the job's positional arguments, in order.
    """
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    """Parse, run the job and exit: 0 done, 1 faulty or failed, 2 the user's input is wrong.

    The last line of a failure states the exit code, since `ray job submit` only knows 0 and 1.
    """
    arguments = made.parse_args()
    try:
        code = job(arguments) or DONE
    except InputError as error:
        code = _say(WRONG_INPUT, error)
    except FaultError as error:
        code = _say(FAULTY, error)
    except BrokenPipeError:  # `plan.py RECIPE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    sys.exit(code)


def _say(code: int, error: Exception) -> int:
    sys.stdout.flush()
    print(f"error: {error} (exit code {code})", file=sys.stderr, flush=True)
    return code
