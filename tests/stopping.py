"""Real processes that are stopped by real signals, and what is left of them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
MARK = "FACTORY_TEST_STOPPED"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Stopped:
    """A process that was stopped: its exit code, its words, seconds from the signal to its end."""

    code: int
    out: str
    err: str
    seconds: float


def family(mark: str) -> list[psutil.Process]:
    """Return all living processes that have the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(MARK) == mark
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found


def stop(
    words: Sequence[str | Path],
    folder: Path,
    number: signal.Signals,
    when: Callable[[str], object],
    *more: float,
    group: bool = False,
) -> Stopped:
    """Start Python with some words, and stop it once `when`, given its stdout, says so.

    Args:
        words: what follows `python`.
        folder: where its output is kept.
        number: the signal.
        when: tells from all of stdout whether it is time.
        more: seconds after which the signal is sent again.
        group: whether it is a terminal's, which reaches all processes of the group.
    """
    mark = str(folder)
    out, err = folder / "out.txt", folder / "err.txt"
    env = {**os.environ, MARK: mark, "PYTHONUNBUFFERED": "1", "RAY_ADDRESS": ""}
    with out.open("w") as said, err.open("w") as wrong:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT, env=env, stdout=said, stderr=wrong, start_new_session=True,
        )  # fmt: skip
    try:
        while not when(out.read_text()):
            assert process.poll() is None, err.read_text()
            time.sleep(0.05)
        send = os.killpg if group else os.kill
        send(process.pid, number)
        start = time.monotonic()
        for seconds in more:
            time.sleep(seconds)
            process.send_signal(number)
        code = process.wait(60)
        took = time.monotonic() - start
        left = family(mark)
        assert not left, [one.cmdline() for one in left]
        return Stopped(code, out.read_text(), err.read_text(), took)
    finally:
        for one in family(mark):
            one.kill()


def check(stopped: Stopped, number: signal.Signals, words: str = "") -> str:
    """Check code and line of a stopped job and return what it said is kept."""
    code = CODES[number]
    assert stopped.code == code, stopped
    told = re.fullmatch(
        rf"stopped: (?:(.+); the same command goes on|the same command can be run again) "
        rf"\(exit code {code}\)\n",
        stopped.err,
    )
    assert told, stopped.err
    kept = told[1] or ""
    assert re.fullmatch(words, kept), kept
    return kept
