"""The watch over a flow of rows: who works, who is stuck, what is made again and what is left out.

A row is stuck after ten times what others took, and after FACTORY_STUCK_SEC at the least. The
process of its actor is then ended from outside, whatever it hangs in; Ray starts it again and hands
it the same row. A row whose process ended too often is left out (`tries.AGAIN`).
"""

import gc
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RpcError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from factory.cluster.progress import notice
from factory.cluster.tries import AGAIN, Note, Tries, born
from factory.recipe import InputError

STUCK = "FACTORY_STUCK_SEC"  # the environment variable for the least time of a stuck row
STUCK_SEC = 300.0  # longer than a store is waited for
TIMES = 10.0  # so many times what others took is stuck
LOOK_SEC = 5.0
COLLECT_SEC = 30.0
REMEMBERED = 999  # rows whose times the median is of


@dataclass(frozen=True)
class Passage:
    """A row's way through the pools.

    Attributes:
        row: the row's name.
        size: how large it is, in any unit that its time grows with.
        took: the seconds of each stage.
        ended: how many processes ended at it, by stage.
    """

    row: str
    size: int
    took: dict[str, float] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    def through(self, stage: str, seconds: float, ended: int) -> "Passage":
        """Return the row's way when it has passed another stage."""
        took, before = self.took | {stage: seconds}, self.ended | {stage: ended}
        return Passage(self.row, self.size, took, before)


class FlowWatch:
    """Watches the rows of one flow from the driver.

    Attributes:
        nodes, actors: how many were at work when the watch last looked.
        again: how many rows were made again, each time counted.
        left_out: what is said of each row that was left out.
        beat: is called after each look, from another thread, and once at the end.
    """

    def __init__(
        self,
        task: Callable[[dict[str, Any]], tuple[str, int]] | None = None,
        leaves_out: bool = False,
        say: Callable[[str], None] = notice,
    ) -> None:
        """Watch nothing yet.

        Args:
            task: names a row and tells its size; rows are numbered otherwise.
            leaves_out: whether the other rows go on without one that was tried too often. Such a
                row ends the flow otherwise.
            say: receives a line for each row that is made again or left out.
        """
        self.tries = Tries()
        self.leaves_out = leaves_out
        self.nodes = self.actors = self.again = 0
        self.left_out: list[str] = []
        self.beat: Callable[[], None] = lambda: None
        self._task, self._say = task, say
        self._numbered = 0
        self._least = stuck_sec()
        self._paces: dict[str, deque[float]] = {}
        self._seen: dict[Note, float] = {}
        self._ended: set[tuple[str, str, int]] = set()  # that were told: stage, row, how many
        self._ending: dict[Any, tuple[Note, str]] = {}
        self._looking = threading.Lock()

    def passage(self, row: dict[str, Any]) -> Passage:
        """Return the way of a row that is handed over, with nothing behind it."""
        self._numbered += 1
        return Passage(*self._task(row)) if self._task else Passage(f"row {self._numbered}", 1)

    def done(self, passage: Passage) -> None:
        """Count a row that came back."""
        for stage, seconds in passage.took.items():
            paces = self._paces.setdefault(stage, deque(maxlen=REMEMBERED))
            paces.append(seconds / passage.size)
        for stage, count in passage.ended.items():
            for number in range(1, count + 1):
                self._tell(stage, passage.row, number)

    def leave_out(self, said: str) -> None:
        """Keep what is said of a row that was tried too often."""
        self.left_out.append(said)
        self._say(f"{said}; it is left out")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look every few seconds while the block runs."""
        over = threading.Event()
        period = min(LOOK_SEC, self._least / 4)

        def look() -> None:
            collected_at = time.monotonic()
            while not over.wait(period):
                if time.monotonic() - collected_at > COLLECT_SEC:  # actors that Ray let go of end
                    gc.collect()  # when no handle of theirs is left, not even in a cycle
                    collected_at = time.monotonic()
                with suppress(RpcError):  # Ray's head does not answer, of which the flow tells
                    self.look()
                self.beat()

        thread = threading.Thread(target=look, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(RpcError):
                self.tries.forget()
            self.nodes = self.actors = 0
            self.beat()

    def look(self) -> None:
        """Count who works, tell what is made again, and end the processes that are stuck."""
        with self._looking:
            self._look()

    def _look(self) -> None:
        notes, now = list(self.tries.notes()), time.monotonic()
        self.nodes = len({note.node for note in notes})
        self.actors = len({note.actor for note in notes})
        self._seen = {note: self._seen.get(note, now) for note in notes}
        for note in notes:
            if 0 < note.ended <= AGAIN:
                self._tell(note.stage, note.row, note.ended)
            after, usual = now - self._seen[note], self._usual(note)
            if usual is not None and after > max(TIMES * usual, self._least):
                words = f"stuck: {note.row} after {after:.0f} s, others took {usual:.2g} s"
                self._ending[_end_process(note)] = note, words
                self._seen[note] = now  # once more if it outlives this
        for task in [task for task in self._ending if ray.wait([task], timeout=0)[0]]:
            note, words = self._ending.pop(task)
            with suppress(RayError):  # its node is gone
                if ray.get(task):  # its process had not ended already
                    self._say(
                        f"{words}; its actor {note.actor[:12]} (process {note.process}, "
                        f"{_where(note.node)}) was ended and is replaced"
                    )

    def _usual(self, note: Note) -> float | None:
        """Return the median of the seconds that others took for a row of this size."""
        paces = self._paces.get(note.stage)
        return statistics.median(list(paces)) * note.size if paces else None

    def _tell(self, stage: str, row: str, number: int) -> None:
        """Say once that a row is made again."""
        if (stage, row, number) not in self._ended:
            self._ended.add((stage, row, number))
            self.again += 1
            self._say(f"{row} is made again ({number} of {AGAIN}): the process of its actor ended")


def stuck_sec() -> float:
    """Return the least time after which a row counts as stuck, in seconds.

    Raises:
        InputError: FACTORY_STUCK_SEC is no positive number.
    """
    said = os.environ.get(STUCK, "")
    try:
        seconds = float(said or STUCK_SEC)
    except ValueError:
        seconds = -1.0
    if not 0.0 < seconds < float("inf"):
        raise InputError(f"{STUCK} {said!r}: accepted is a number of seconds above 0")
    return seconds


def _where(node: str) -> str:
    """Return a node's address in words."""
    found = [n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == node]
    return f"node {found[0]}" if found else "a node that is gone"


def _end_process(note: Note) -> Any:
    """End the process of a note on its node, by a task there that waits for nothing."""
    there: Any = NodeAffinitySchedulingStrategy(note.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_end)
    return task.remote(note.process, note.born)


def _end(process: int, since: int) -> bool:
    """End a process of this node, and tell whether it was still there: ids are given again."""
    if born(process) != since:
        return False
    os.kill(process, signal.SIGKILL)
    return True
