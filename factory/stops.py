"""Stopping a job: Ctrl-C and SIGTERM end it within five seconds and with one line.

The first signal raises KeyboardInterrupt in the main thread, whose blocks then end as they do after
any error. A second thread watches them. If they do not end in time, for example because Ray or a
server does not answer, that thread does the few things that must be done and ends the process. A
second signal ends the process at once. All processes that the job started, its own Ray included,
end with it. Nothing that is committed is lost, because a manifest commits it. After the first
signal only the one line is shown.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from types import FrameType
from typing import NoReturn, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ORDERLY_SEC = 3.0  # time for the main thread to end
LAST_SEC = 0.7  # time after that for the things that must be done
CHILD_SEC = ORDERLY_SEC + LAST_SEC  # time for a job that this one runs
# Signals closer together than this count as one: a terminal's Ctrl-C reaches a job and also the job
# that runs it, which hands it on; `timeout` sends its signal twice, too.
SAME_SEC = 0.5
HURRY_SEC = 0.2  # in place of LAST_SEC, after a second signal
GONE_SEC = 0.5  # time for killed processes to disappear
AGAIN = "the same command can be run again"  # in place of what is kept

Does = Callable[[], None]


class _Stop:
    """The state of this process's stop."""

    def __init__(self) -> None:
        """Begin without a stop."""
        self.asked = 0  # the first signal's number; 0 before one
        self.raised = False  # whether the main thread has its KeyboardInterrupt
        self.deadline = 0.0  # of the main thread, in monotonic seconds
        self.said = False  # whether the line is written
        self.stdout: TextIO | None = None  # the real stdout, which may hold unwritten text
        self.stderr = 2  # a copy of the user's stderr, which outlives descriptor 2
        self.kept: list[Callable[[], str]] = []
        self.tidied: list[Callable[[], object]] = []
        self.undone: list[Does] = []
        self.lock = threading.Lock()


_stop = _Stop()
_watching = False


@contextmanager
def watched() -> Iterator[None]:
    """Let SIGINT and SIGTERM stop this process while the block runs.

    SIGINT counts even where a shell makes its background jobs ignore it.
    """
    global _stop, _watching
    _stop = _Stop()
    _stop.stderr = os.dup(2)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    told, tells = socket.socketpair()
    tells.setblocking(False)
    former = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    _watching = True
    install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # see `shielded`
    watch = threading.Thread(target=_watch, args=(told, _stop), name="stop", daemon=True)
    watch.start()
    try:
        yield
    finally:
        _watching = False
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        tells.close()
        watch.join()
        told.close()
        os.close(_stop.stderr)
        _stop.stderr = 2


def install() -> None:
    """Set the signal handlers again: starting Ray replaces them and hides SIGTERM from Python."""
    if _watching and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _raise)


def asked() -> bool:
    """Tell whether this process has been asked to stop."""
    return bool(_stop.asked)


@contextmanager
def keeping(said: Callable[[], str], tidied: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Set what the line of a stop during the block says about finished work.

    Args:
        said: returns the words, as "3 of 60 shards are committed", or "" for none. It is called
            while everything that the job started is halted, and may read the job's folder.
        tidied: removes what killed processes left unfinished; the very last act.
    """
    _stop.kept.append(said)
    _stop.tidied.append(tidied)
    yield
    # Both stay after an error, because they are asked at the very end.
    _stop.kept.remove(said)
    _stop.tidied.remove(tidied)


@contextmanager
def ending(undone: Does) -> Iterator[None]:
    """Set what a stop must do if the block does not end in time.

    Args:
        undone: is called from another thread, while the block may still run.
    """
    _stop.undone.append(undone)
    try:
        yield
    finally:
        _stop.undone.remove(undone)


@contextmanager
def shielded() -> Iterator[None]:
    """Shield processes that are started in the block from signals, until they call `watched`.

    Without this, a process that is still importing would show a traceback of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hand_on(child: "Popen[bytes]") -> None:
    """Stop a job that this one runs, and wait for it; its line then replaces this job's own."""
    stop = _stop
    stop.deadline = time.monotonic() + CHILD_SEC + LAST_SEC
    with suppress(ProcessLookupError, TimeoutExpired):
        child.send_signal(stop.asked or signal.SIGINT)
        child.wait(CHILD_SEC)
    stop.said = child.returncode == 128 + stop.asked


def importing() -> None:
    """Let a signal end the process at once while it still imports and has nothing to clean up."""

    def end(number: int, frame: FrameType | None) -> None:
        _stop.asked = number
        finish()

    for number in SIGNALS:
        signal.signal(number, end)


def finish() -> NoReturn:
    """End the process and all that it started; the last act of a stopped job."""
    stop = _stop
    stop.asked = stop.asked or signal.SIGINT
    _mute(stop)
    if stop.stdout is not None:
        with suppress(OSError, ValueError):  # a closed pipe, for example
            stop.stdout.flush()
    family = _hold()  # first, so that nothing changes while `kept` counts
    words: list[str] = []
    _together([lambda: words.append(stop.kept[-1]())] if stop.kept else [], LAST_SEC)
    _end(stop, family, "".join(words))


def closing(code: int) -> None:
    """Let a signal end a process at once whose job is done; for `atexit`.

    Args:
        code: the exit code of the job.
    """

    def hurry(number: int, frame: FrameType | None) -> None:
        _mute(_stop)
        kill(_hold())
        os._exit(code)

    for number in SIGNALS:
        signal.signal(number, hurry)


def _raise(number: int, frame: FrameType | None) -> None:
    """Stop the main thread, once: a second exception would break off the ends of its blocks."""
    if not _stop.raised:
        _stop.raised = True
        _stop.asked = _stop.asked or number
        _mute(_stop)
        raise KeyboardInterrupt


def _watch(told: socket.socket, stop: _Stop) -> None:
    """Wait for signals; Python writes their numbers to `told` even if the main thread is busy."""
    first = 0.0
    while True:
        left = max(stop.deadline - time.monotonic(), 0.0) if first else None
        if not select.select([told], [], [], left)[0]:
            if time.monotonic() >= stop.deadline:
                _give_up(stop, LAST_SEC)
            continue
        numbers = told.recv(64)
        if not numbers:
            return
        if not any(number in SIGNALS for number in numbers):
            continue
        now = time.monotonic()
        if not first:
            first = now
            stop.asked = stop.asked or next(number for number in numbers if number in SIGNALS)
            stop.deadline = max(stop.deadline, now + ORDERLY_SEC)
        elif now - first > SAME_SEC:
            _give_up(stop, HURRY_SEC)


def _give_up(stop: _Stop, seconds: float) -> NoReturn:
    """End the process in the main thread's place."""
    _mute(stop)
    words: list[str] = []
    kept = [lambda: words.append(stop.kept[-1]())] if stop.kept else []
    _together([*stop.undone, *kept], seconds)
    _end(stop, _hold(), "".join(words))


def _together(does: Sequence[Callable[[], object]], seconds: float) -> None:
    """Run all functions at once; ignore those that fail or do not end in time."""
    threads = [threading.Thread(target=do, name="last", daemon=True) for do in does]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))


def _mute(stop: _Stop) -> None:
    """Hide all further output: Ray, for example, reports that its processes die."""
    if stop.stderr == 2:
        stop.stderr = os.dup(2)
    if stop.stdout is None:
        stop.stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - to the end
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end(stop: _Stop, family: set[int], kept: str) -> NoReturn:
    code = 128 + stop.asked
    with stop.lock:
        if not stop.said:
            words = f"{kept}; the same command goes on" if kept else AGAIN
            with suppress(OSError):
                os.write(stop.stderr, f"stopped: {words} (exit code {code})\n".encode())
        stop.said = True
    kill(family)
    _together(stop.tidied, LAST_SEC)
    os._exit(code)


def _hold() -> set[int]:
    """Halt and return all processes below this one, so that none of them starts another."""
    held: set[int] = set()
    while fresh := below() - held:
        _send(fresh, signal.SIGSTOP)
        held |= fresh
    return held


def kill(family: set[int]) -> None:
    """Kill processes by their ids, and wait until they are gone.

    One whose parent is gone first is below another process until then, so ids are looked at.
    """
    _send(family, signal.SIGKILL)
    until = time.monotonic() + GONE_SEC
    while any(map(_parent, family)) and time.monotonic() < until:
        time.sleep(0.01)


def _send(processes: set[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def below() -> set[int]:
    """Return the ids of all living processes below this one."""
    started: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        if parent := _parent(process):
            started.setdefault(parent, []).append(process)
    found: set[int] = set()
    ahead = [os.getpid()]
    while ahead:
        children = started.get(ahead.pop(), [])
        found.update(children)
        ahead += children
    return found


def _parent(process: int) -> int:
    """Return the id of a living process's parent; 0 if it has ended, or has none."""
    try:
        state, parent, *_ = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it is gone
        return 0
    return 0 if state in "ZX" else int(parent)
