"""Notes of what is worked on, which a process that ends leaves behind."""

import os
import signal
import subprocess
import sys

import pytest
import ray

from factory.cluster import tries
from factory.cluster.tries import Tries, born

pytestmark = pytest.mark.ray


def test_a_process_that_ended_is_counted_unless_its_node_went(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Tries()
    assert mine.begin("make", "shard a", 5) == 0
    (note,) = mine.notes()
    assert (note.stage, note.row, note.size, note.ended) == ("make", "shard a", 5, 0)
    assert note.node == ray.get_runtime_context().get_node_id()
    assert (note.process, note.born) == (os.getpid(), born(os.getpid()))
    assert [mine.begin("make", "shard a") for _ in range(2)] == [1, 2]
    assert mine.begin("commit", "shard a") == 0 and Tries().begin("make", "shard a") == 0
    with monkeypatch.context() as patch:
        patch.setattr(tries, "_staying", set)
        assert mine.begin("make", "shard a") == 2, "the node took it along"
    assert mine.begin("make", "shard a") == 3
    mine.end("make", "shard a")
    assert mine.begin("make", "shard a") == 0, "what was done is forgotten"
    assert len(list(mine.notes())) == 2
    mine.forget()
    assert list(mine.notes()) == []


def test_a_node_that_is_drained_does_not_count(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = ray.get_runtime_context().get_node_id()
    assert tries._staying() == {node}
    monkeypatch.setattr(tries.state.state, "get_draining_nodes", lambda: {node: 1})
    assert tries._staying() == set()


def test_two_processes_with_one_id_differ_by_their_birth() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert born(process.pid) >= born(os.getpid()) > 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert born(process.pid) == -1
