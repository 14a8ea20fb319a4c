"""How a job is stopped: Ctrl-C and SIGTERM end it within five seconds and with one line.

The first signal raises KeyboardInterrupt in the main thread, whose blocks then end as they do for
any error. A thread watches that: where they do not end in time, as while Ray or a server does not
answer, it does the little that must not be left undone and ends the process itself. A second signal
ends it at once. Whatever the job started, the processes of its own Ray among them, ends with it;
that is no loss, since what counts is committed by its manifest. After the first signal nothing but
the line is shown.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from types import FrameType
from typing import NoReturn, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ORDERLY_SEC = 3.0  # given to the main thread
LAST_SEC = 0.7  # given to what must not be left undone, after that
CHILD_SEC = ORDERLY_SEC + LAST_SEC  # given to a job that this one runs
# A terminal's Ctrl-C reaches a job and the one that runs it, which hands it on; `timeout` sends its
# signal twice as well.
SAME_SEC = 0.5
HURRY_SEC = 0.2  # the same, after a second signal
GONE_SEC = 0.5  # for killed processes to be gone

Does = Callable[[], None]


class _Stop:
    """What is known of the stop of this process."""

    def __init__(self) -> None:
        """Begin unstopped."""
        self.asked = 0  # the first signal's number
        self.raised = False  # whether the main thread has been told
        self.deadline = 0.0  # monotonic seconds, for the main thread
        self.said = False
        self.stdout: TextIO | None = None  # what was said before the stop, and may be unwritten
        self.stderr = 2  # the user's, whatever becomes of descriptor 2
        self.kept: list[Callable[[], str]] = []
        self.undone: list[Does] = []
        self.lock = threading.Lock()


_stop = _Stop()
_watching = False


@contextmanager
def watched() -> Iterator[None]:
    """Let SIGINT and SIGTERM stop this process for as long as the block runs.

    A SIGINT that a shell made its background jobs ignore counts, too: who sends one means it.
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
    """Take the signals again: starting Ray takes them away, SIGTERM even from Python."""
    if _watching and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _raise)


def asked() -> bool:
    """Tell whether this process has been asked to stop."""
    return bool(_stop.asked)


@contextmanager
def keeping(said: Callable[[], str]) -> Iterator[None]:
    """State what a stop during the block keeps.

    Args:
        said: returns the words, as "3 of 60 shards are committed", after everything that the job
            started has ended; "" for none. It may read the job's folder.
    """
    _stop.kept.append(said)
    yield
    _stop.kept.remove(said)  # not after an error: a stop says it when all blocks have ended


@contextmanager
def ending(undone: Does) -> Iterator[None]:
    """State what must be done in place of the block's own end, should it not come in time.

    Args:
        undone: called from another thread, while the block may still run.
    """
    _stop.undone.append(undone)
    try:
        yield
    finally:
        _stop.undone.remove(undone)


@contextmanager
def shielded() -> Iterator[None]:
    """Start processes in the block that no stop reaches until they call `watched`, if they do.

    Without it, one that is still importing would show a traceback of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hand_on(child: "Popen[bytes]") -> None:
    """Stop a job that this one runs, and wait for it; its line then stands for this one's, too."""
    stop = _stop
    stop.deadline = time.monotonic() + CHILD_SEC + LAST_SEC
    with suppress(ProcessLookupError, TimeoutExpired):
        child.send_signal(stop.asked or signal.SIGINT)
        child.wait(CHILD_SEC)
    stop.said = child.returncode == 128 + stop.asked


def importing() -> None:
    """Let a signal end a job that still imports: nothing has begun that a block would end."""

    def end(number: int, frame: FrameType | None) -> None:
        _stop.asked = number
        finish()

    for number in SIGNALS:
        signal.signal(number, end)


def finish() -> NoReturn:
    """End the process and all that it started: what a stopped job does last."""
    stop = _stop
    stop.asked = stop.asked or signal.SIGINT
    _mute(stop)
    if stop.stdout is not None:
        with suppress(OSError, ValueError):  # nobody reads it any more
            stop.stdout.flush()
    family = _hold()  # before anything is counted
    words: list[str] = []
    _together([lambda: words.append(stop.kept[-1]())] if stop.kept else [], LAST_SEC)
    _end(stop, family, "".join(words))


def closing(code: int) -> None:
    """Let a signal hurry the end of a process whose job is done; for `atexit`.

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
    """Stop the main thread, once: another exception would tear the ends of its blocks apart."""
    if not _stop.raised:
        _stop.raised = True
        _stop.asked = _stop.asked or number
        _mute(_stop)
        raise KeyboardInterrupt


def _watch(told: socket.socket, stop: _Stop) -> None:
    """Follow the signals, whose numbers Python writes to `told` whatever the main thread does."""
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


def _together(does: list[Does], seconds: float) -> None:
    """Do all of it at once; what fails or does not end in time is left."""
    threads = [threading.Thread(target=do, name="last", daemon=True) for do in does]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))


def _mute(stop: _Stop) -> None:
    """Keep from the user's eyes what others say while they end: Ray sees its processes die."""
    if stop.stderr == 2:
        stop.stderr = os.dup(2)
    if stop.stdout is None:
        stop.stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - to the end
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _end(stop: _Stop, family: set[int], kept: str) -> NoReturn:
    code = 128 + stop.asked
    with stop.lock:
        if not stop.said:
            words = f"{kept}; the same command goes on" if kept else "the same command goes on"
            with suppress(OSError):
                os.write(stop.stderr, f"stopped: {words} (exit code {code})\n".encode())
        stop.said = True
    kill(family)
    os._exit(code)


def _hold() -> set[int]:
    """Halt all processes below this one and return them: one that runs could start another."""
    held: set[int] = set()
    while fresh := below() - held:
        _send(fresh, signal.SIGSTOP)
        held |= fresh
    return held


def kill(family: set[int]) -> None:
    """Kill processes by their ids, and see them go."""
    _send(family, signal.SIGKILL)
    until = time.monotonic() + GONE_SEC
    while below() & family and time.monotonic() < until:
        time.sleep(0.01)


def _send(processes: set[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def below() -> set[int]:
    """Return the ids of all living processes below this one."""
    started: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, parent, *_ = file.read_text().rpartition(")")[2].split()
            if state not in "ZX":
                started.setdefault(int(parent), []).append(int(file.parent.name))
    found: set[int] = set()
    ahead = [os.getpid()]
    while ahead:
        children = started.get(ahead.pop(), [])
        found.update(children)
        ahead += children
    return found
