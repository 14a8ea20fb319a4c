"""A busy cluster is waited for with one line of what is lacking."""

import threading
import time
from pathlib import Path

import pytest
import ray

from factory.cluster import waiting
from factory.cluster.waiting import tell_of_room, wait_for, wait_for_pool
from factory.nodes import Reservation

pytestmark = pytest.mark.ray


def test_what_is_taken_is_said_and_then_waited_for(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, opened = tmp_path / "held", tmp_path / "opened"

    @ray.remote(num_cpus=4)
    def hold() -> None:  # a task that waits for Ray would give its CPUs back meanwhile
        held.touch()
        while not opened.exists():
            time.sleep(0.1)

    monkeypatch.setattr(waiting, "started_here", lambda: False)
    monkeypatch.setattr(waiting, "FIRST_SEC", 0.2)
    monkeypatch.setattr(waiting, "NEXT_SEC", 0.2)
    holder = hold.remote()
    while not held.exists():
        ray.wait([holder], timeout=0.1)
    said: list[str] = []
    heard = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        heard.set()

    waiter = threading.Thread(target=wait_for, args=(Reservation("a", "a.", 1, 2.0), say))
    waiter.start()
    assert heard.wait(120)
    assert said[0] == "waiting for 2 CPU; the cluster has 4, all taken"
    opened.touch()
    waiter.join(120)
    assert not waiter.is_alive()


def test_a_cluster_that_has_none_yet_says_so(ray_cluster: str) -> None:
    wanted = Reservation("a", "a.", 1, 0.0, 8.0)
    assert waiting.lacking(wanted) == "waiting for 8 GPU; the cluster has 1, of which 1 are free"


def test_a_pool_that_begins_with_fewer_actors_says_so_in_one_line(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    pool = Reservation("workers.max", "workers.", 9, 1.0)
    tell_of_room(pool, 9, said.append)
    assert said == [], "a Ray of this process's own does not grow"
    monkeypatch.setattr(waiting, "started_here", lambda: False)
    monkeypatch.setattr(waiting, "SETTLE_SEC", 0.0)
    monkeypatch.setattr(
        *(waiting.state, "available_resources_per_node"),
        lambda: {"head": {}, "a": {"CPU": 2.5}, "b": {"CPU": 1.0, "GPU": 1.0}},
    )
    tell_of_room(pool, 3, said.append)
    assert said == [], "there is room"
    tell_of_room(pool, 4, said.append)
    tell_of_room(Reservation("workers.max", "workers.", 2, 0.5, 0.5), 2, said.append)
    tell_of_room(Reservation("workers.max", "workers.", 2, 0.5, 2.0), 1, said.append)
    assert said == [
        "3 of 4 actors begin (workers.max 9); the others wait for free CPUs and GPUs, or for "
        "nodes to join the 1 there",
    ]


def test_a_task_that_has_just_ended_is_no_lack_of_room(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's view of what is free comes late: two looks see the place of the wait's own task."""
    monkeypatch.setattr(waiting, "started_here", lambda: False)
    monkeypatch.setattr(waiting, "SETTLE_SEC", 600.0)
    looks = iter([1.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(
        waiting.state, "available_resources_per_node", lambda: {"a": {"CPU": next(looks)}}
    )
    said: list[str] = []
    wait_for_pool(Reservation("workers.max", "workers.", 2, 1.0), 2, said.append)
    assert said == [] and not list(looks)
