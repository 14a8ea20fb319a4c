"""The watch: what is stuck, what is told, and what is not."""

import subprocess
import sys

import pytest
import ray

from factory.cluster import watch as watching
from factory.cluster.tries import Note, born
from factory.cluster.watch import STUCK, Passage, Watch, stuck_sec
from factory.recipe import InputError


class Clock:
    """Monotonic seconds that a test sets."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watching, "time", made)
    return made


def noted(row: str, size: int = 1, ended: int = 0, actor: str = "a", node: str = "n") -> Note:
    return Note("make", row, size, ended, actor, node, 1, 1)


def looking(watch: Watch, notes: list[Note], monkeypatch: pytest.MonkeyPatch) -> list[Note]:
    """Let a watch look at notes; return those whose processes it would end."""
    ended: list[Note] = []

    def end(note: Note) -> Note:
        ended.append(note)
        return note

    monkeypatch.setattr(type(watch.tries), "notes", lambda tries: iter(notes))
    monkeypatch.setattr(watching, "_end_process", end)
    monkeypatch.setattr(ray, "wait", lambda tasks, timeout: (tasks, []))
    monkeypatch.setattr(ray, "get", lambda note: True)
    monkeypatch.setattr(ray, "nodes", lambda: [])
    watch.look()
    return ended


def test_ten_times_what_others_took_for_as_much_is_stuck(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STUCK, "30")
    said: list[str] = []
    watch = Watch(say=said.append)
    notes = [noted("small", 1), noted("large", 8, actor="b", node="m")]
    assert looking(watch, notes, monkeypatch) == []
    clock.now += 1e6
    assert looking(watch, notes, monkeypatch) == [], "nothing has come back to compare with"
    watch = Watch(say=said.append)
    for seconds in (8.0, 10.0, 400.0):
        watch.done(Passage("done", 2).through("make", seconds, 0))
    assert looking(watch, notes, monkeypatch) == []
    assert (watch.nodes, watch.actors) == (2, 2)
    clock.now += 49.0  # ten times five seconds are 50 for the small one, 400 for the large
    assert looking(watch, notes, monkeypatch) == []
    clock.now += 2.0
    assert looking(watch, notes, monkeypatch) == [notes[0]]
    (line,) = said
    assert line.startswith("stuck: small after 51 s, others took 5 s; its actor a (process 1, ")
    assert looking(watch, notes, monkeypatch) == [], "once"
    clock.now += 350.0
    assert looking(watch, notes[1:], monkeypatch) == [notes[1]]


def test_quick_rows_are_given_the_least_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(say=lambda line: None)
    watch.done(Passage("done", 1).through("make", 0.01, 0))
    looking(watch, [noted("a")], monkeypatch)
    clock.now += watching.STUCK_SEC - 1
    assert looking(watch, [noted("a")], monkeypatch) == []
    again = noted("a", ended=1)
    assert looking(watch, [again], monkeypatch) == []
    clock.now += watching.STUCK_SEC - 1
    assert looking(watch, [again], monkeypatch) == [], "each try has its own time"
    clock.now += 2
    assert looking(watch, [again], monkeypatch) == [again]


def test_each_time_that_a_row_is_made_again_is_told_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    watch = Watch(say=said.append)
    for _ in range(2):
        looking(watch, [noted("a", ended=1)], monkeypatch)
    watch.done(Passage("a", 1).through("make", 1.0, 2))
    assert said == [
        "a is made again (1 of 3): the process of its actor ended",
        "a is made again (2 of 3): the process of its actor ended",
    ]
    assert watch.again == 2


def test_rows_are_numbered_where_nothing_names_them() -> None:
    watch = Watch()
    assert [watch.passage({}).row for _ in range(2)] == ["row 1", "row 2"]
    named = Watch(lambda row: (f"block {row['block']}", 4))
    assert named.passage({"block": 7}) == Passage("block 7", 4)


@pytest.mark.parametrize("said", ["soon", "0", "-3", "nan", "inf"])
def test_a_least_time_that_is_none_is_one_error(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STUCK, said)
    with pytest.raises(InputError, match=f"{STUCK} '{said}': accepted is a number of seconds"):
        stuck_sec()


def test_only_the_process_that_was_meant_is_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = born(process.pid)
    assert not watching._end(process.pid, since + 1) and process.poll() is None
    assert watching._end(process.pid, since)
    assert process.wait(60) == -9
    assert not watching._end(process.pid, since)
