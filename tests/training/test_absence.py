"""What is said of workers that a training lacks; a node's real loss is in tests/faults."""

import time

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from factory.nodes import Reservation
from factory.training import absence
from factory.training.absence import Absence, lost, unplaced, waited_for
from factory.training.workers import Board

TWO = Reservation("engine.workers", "engine.", 2, 1.0)


class Clock:
    """The time, as a test sets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Take the place of the time, in a cluster that never has a place for two workers."""
    made = Clock()
    monkeypatch.setattr(absence, "time", made)
    monkeypatch.setattr(absence, "unplaced", lambda reserved: True)
    monkeypatch.setattr(absence, "waited_for", lambda reserved: "waiting")
    return made


def test_a_loss_is_said_at_once_and_what_is_waited_for_after_ten_seconds(clock: Clock) -> None:
    said: list[str] = []
    board, told = Board(), Absence(TWO, lambda: "step 8 is the newest checkpoint", said.append)

    def after(seconds: float) -> list[str]:
        clock.now += seconds
        told(*board.attendance())
        lines, said[:] = list(said), []
        return lines

    assert after(9.0) == [] and after(2.0) == ["waiting"]  # for the first workers, too
    board.begin(0)
    assert after(59.0) == [] and after(2.0) == ["waiting"]
    board.begin(1)
    assert after(500.0) == []
    board.lose("worker 1 of 2 lost")
    assert after(1.0) == ["worker 1 of 2 lost; step 8 is the newest checkpoint"]
    assert after(9.0) == [] and after(2.0) == ["waiting"] and after(30.0) == []
    board.begin(1), board.begin(0)
    assert after(500.0) == []
    board.fail("run", "the loss is nan")  # what ends the training is said as its error
    board.lose("worker 0 of 2 failed: the loss is nan")
    assert after(500.0) == []


def test_workers_that_start_are_not_waited_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They load torch for long on a busy machine; then the cluster has placed them."""
    monkeypatch.setattr(absence, "unplaced", lambda reserved: False)
    said: list[str] = []
    told = Absence(TWO, lambda: "", said.append)
    clock.now += 500.0
    told([], 0)
    assert said == []


def test_the_words_of_a_loss() -> None:
    died = RayActorError(error_msg="The actor died because its node has died.")
    wrapped = WorkerHealthCheckFailedError("A worker health check failed.", died)
    closed = RuntimeError("Traceback:\n  a line\nRuntimeError: Connection closed by peer\n")
    for error in (died, wrapped):
        assert lost({1: error, 0: closed}, 2) == "worker 1 of 2 lost"
    assert lost({2: wrapped, 0: died}, 4) == "workers 0, 2 of 4 lost"
    assert lost({0: closed}, 2) == "worker 0 of 2 failed: RuntimeError: Connection closed by peer"


@pytest.mark.ray
def test_what_has_no_place_is_named(ray_cluster: str) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    wanted = Reservation("engine.workers", "engine.", 2, 3.0)
    assert not unplaced(wanted)
    held = [placement_group([{"CPU": 3.0}] * 2), placement_group([{"CPU": 1.0}])]
    ray.get(held[1].ready())
    assert unplaced(wanted) and not unplaced(TWO)
    assert not unplaced(Reservation("engine.workers", "engine.", 1, 1.0))  # that one is placed
    for group in held:
        remove_placement_group(group)
    while unplaced(wanted) or ", all taken" in waited_for(wanted):  # Ray tells a moment later
        time.sleep(0.05)
    assert waited_for(wanted).startswith("waiting for 6 CPU; the cluster has 4, of which ")
    assert waited_for(wanted).endswith("; the same command goes on with fewer engine.workers, too")
    assert waited_for(Reservation("engine.workers", "engine.", 1, 8.0)).count(";") == 1
