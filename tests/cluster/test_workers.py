"""Actor pools: what goes wrong in an actor comes back as one error, and rows in windows."""

import gc
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import ray
import torch

from factory.cluster import workers
from factory.cluster.watch import FlowWatch
from factory.cluster.workers import FAILED, REFUSED, ActorPool, Guarded, column, each, flow
from factory.nodes import Reservation
from factory.recipe import FaultError, InputError

PART = Reservation("workers.max", "workers.", 1, 0.25)

pytestmark = pytest.mark.ray


class Doubles:
    """Doubles numbers; fails at 0."""

    def __init__(self, times: int) -> None:
        if times < 0:
            raise InputError(f"recipe field times: {times}")
        self.times = times

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        (number,) = batch["number"]
        if number == 0:
            raise OSError(28, "No space left")
        return {"number": column(int(number) * self.times)}


class Data(list):
    """Rows that nothing has passed through."""

    def iter_batches(self, **how: Any) -> Iterator[dict[str, Any]]:
        for row in self:
            yield {name: column(value) for name, value in row.items()}


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> list[ActorPool]:
    """Return a pool that rows pass through as they are, without Ray."""
    monkeypatch.setattr(workers, "wait_for_pool", lambda reserved, least: None)
    monkeypatch.setattr(FlowWatch, "watching", lambda watch: nullcontext())
    monkeypatch.setattr(workers, "_through", lambda data, pool, tries: data)
    monkeypatch.setattr(ray.data, "from_items", lambda rows, **how: Data(rows))
    return [ActorPool("Same", Doubles, (1,), PART, 1)]


@pytest.mark.parametrize(
    ("error", "named", "words"),
    [
        (InputError("recipe field x: 3"), REFUSED, "recipe field x: 3"),
        (OSError(28, "No space left"), FAILED, r"\[Errno 28\] No space left"),
        (FaultError("its tar is missing"), FAILED, "its tar is missing"),
        (OSError("s3://k:s@b/x"), FAILED, "s3://b/x"),
        (torch.OutOfMemoryError("CUDA:\n 3 GB"), FAILED, r".*sampler\.batch_size.*\(CUDA: 3 GB\)"),
    ],
)
def test_what_a_row_ends_in_is_a_row(error: Exception, named: str, words: str) -> None:
    class Fails:
        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
            raise error

    guarded = Guarded(Fails)
    row = guarded({"number": np.array([1])})
    (said,) = row[named]
    assert re.fullmatch(words, said)
    assert guarded(row) is row  # as a later pool passes it on


def test_an_actor_that_cannot_be_made_says_so_at_every_row() -> None:
    guarded = Guarded(Doubles, -1)
    for number in (1, 2):  # one of them has to reach the driver
        (said,) = guarded({"number": np.array([number])})[REFUSED]
        assert said == f"node {socket.gethostname()}: recipe field times: -1"


def test_a_bug_in_a_worker_keeps_its_traceback() -> None:
    with pytest.raises(TypeError):
        Guarded(Doubles, None)
    with pytest.raises(KeyError):
        Guarded(Doubles, 2)({"else": np.array([1])})


def test_rows_of_errors_reach_the_user_as_errors(untouched: list[ActorPool]) -> None:
    with pytest.raises(InputError, match=r"^node a: recipe field x$"):
        list(flow([{REFUSED: "node a: recipe field x"}], untouched, "output u: "))
    with pytest.raises(FaultError, match=r"^output u: full; the same command goes on from here$"):
        list(flow([{FAILED: "full"}], untouched, "output u: "))


@pytest.mark.parametrize(("name", "most"), [("WINDOW_ROWS", 4), ("WINDOW_BYTES", 1000)])
def test_rows_are_handed_over_a_window_at_a_time(
    ray_cluster, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    monkeypatch.setattr(workers, "PORTION", 2)
    monkeypatch.setattr(workers, name, most)
    asked: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(1, 8):
            asked.append(number)
            yield {"number": number, "more": b"x" * 250}

    pool = ActorPool("Doubles", Doubles, (10,), PART, 1)
    found = [(row["number"], len(asked)) for row in flow(rows(), [pool], "")]
    assert sorted(found) == [(10, 4), (20, 4), (30, 4), (40, 4), (50, 7), (60, 7), (70, 7)]


def test_the_driver_keeps_as_much_of_a_long_dataset_as_of_a_short_one(
    ray_cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each row that Ray hands out, it has a bundle while the row waits, and had statistics."""
    monkeypatch.setattr(workers, "PORTION", 100)
    monkeypatch.setattr(workers, "AHEAD", 2.0)
    kept = Counter[str]()
    rows = ({"number": number} for number in range(1, 501))
    for turn, _ in enumerate(flow(rows, [ActorPool("Doubles", Doubles, (10,), PART, 1)], "")):
        if turn == 300:
            kept.update(type(one).__name__ for one in gc.get_objects())
    assert turn == 499
    assert 0 < kept["RefBundle"] < 100 and kept["BlockStats"] < 100


class Naps:
    """Says who it is after a nap."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        time.sleep(0.2)
        return {"actor": column(ray.get_runtime_context().get_actor_id())}


@pytest.mark.parametrize("portion", [5, 1000])
def test_a_pool_grows_while_rows_come(
    ray_cluster, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    """Whether the rows wait in a portion, which hands on no more than it must, or before Ray."""
    monkeypatch.setattr(workers, "PORTION", portion)
    part = Reservation("workers.max", "workers.", 3, 0.25)
    rows = ({"number": number} for number in range(150))
    found = [row["actor"] for row in flow(rows, [ActorPool("Naps", Naps, (), part, 1)], "")]
    assert len(found) == 150 and len(set(found)) > 1


def test_a_row_that_fails_in_the_first_pool_passes_the_second(ray_cluster) -> None:
    pools = [ActorPool(name, Doubles, (2,), PART, 1) for name in ("First", "Second")]
    with pytest.raises(FaultError, match=r"^here: \[Errno 28\] No space left; the same command"):
        list(flow([{"number": 4}, {"number": 0}], pools, "here: "))


def test_each_asks_first_and_starts_nothing_for_nothing(ray_cluster) -> None:
    assert list(each([], Doubles, 2, Reservation("--actors", "--actors ", 99))) == []
    with pytest.raises(InputError, match="--actors 99 x 1: 99 CPU together"):
        next(each([{"number": 1}], Doubles, 2, Reservation("--actors", "--actors ", 99)))
