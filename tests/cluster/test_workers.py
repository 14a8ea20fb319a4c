"""Actor pools: what goes wrong in an actor comes back as one error, and rows in windows."""

import re
import socket
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


def test_rows_are_handed_over_a_window_at_a_time(
    untouched: list[ActorPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "WINDOW_ROWS", 4)
    monkeypatch.setattr(workers, "WINDOW_TURNS", 1)
    asked: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(6):
            asked.append(number)
            yield {"number": number}

    found = [(row["number"], len(asked)) for row in flow(rows(), untouched, "")]
    assert found == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 6), (5, 6)]


def test_a_row_that_fails_in_the_first_pool_passes_the_second(ray_cluster) -> None:
    pools = [ActorPool(name, Doubles, (2,), PART, 1) for name in ("First", "Second")]
    with pytest.raises(FaultError, match=r"^here: \[Errno 28\] No space left; the same command"):
        list(flow([{"number": 4}, {"number": 0}], pools, "here: "))


def test_each_asks_first_and_starts_nothing_for_nothing(ray_cluster) -> None:
    assert list(each([], Doubles, 2, Reservation("--actors", "--actors ", 99))) == []
    with pytest.raises(InputError, match="--actors 99 x 1: 99 CPU together"):
        next(each([{"number": 1}], Doubles, 2, Reservation("--actors", "--actors ", 99)))
