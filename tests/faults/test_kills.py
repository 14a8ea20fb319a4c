"""kill -9 of what makes shards, and two drivers at once: the bytes of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ready

from factory.cluster import workers
from factory.datasets.claim import write_claim
from factory.datasets.manifest import merge
from factory.datasets.provenance import versions
from factory.datasets.scratch import scratch, sweep_scratch
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.generation.run import generate
from factory.plan import shards
from factory.recipe import FaultError, content_digest

WRITER = Path(__file__).parent / "writer.py"


def actors() -> list[psutil.Process]:
    """Return the processes of this session's Ray that run stages."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapWorker(MapBatches(Make))" in " ".join(process.cmdline()):  # on dashboards, too
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.ray
def test_killed_actors_lose_nothing(
    ray_cluster, plain, make_alone, tars, parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PORTION", 4)  # Ray takes these apart while actors are killed
    monkeypatch.setattr(workers, "WINDOW_ROWS", 8)
    recipe, killed = plain("workers.max=2", "workers.num_cpus=0.5"), []
    make_alone(recipe, Store(tmp_path / "whole"))
    store = Store(tmp_path / "killed")
    write_claim(store, recipe, content_digest(recipe, versions()), ())

    def say(line: str) -> None:
        running = actors()
        if len(killed) < 2 and running:
            victim = random.Random(len(killed)).choice(running)
            victim.kill()
            killed.append(victim.pid)

    generate(recipe, store, (), say)
    assert killed
    store.sweep()
    assert tars(store) == tars(Store(tmp_path / "whole"))
    assert verify(store) == [] and parts(tmp_path) == []


def test_two_writers_that_know_nothing_of_each_other(
    plain, make_alone, tars, parts, tmp_path: Path
) -> None:
    """The lock keeps a second driver out; where an object store cannot, nothing comes of it."""
    recipe = plain("identities.count=6")
    make_alone(recipe, Store(tmp_path / "whole"))
    store = Store(tmp_path / "both")
    write_claim(store, recipe, content_digest(recipe, versions()), ())
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ready.run, WRITER, tmp_path / "both") for _ in range(2)]
    assert [one.result().returncode for one in both] == [0, 0]
    merge(store, shards(recipe))
    assert tars(store) == tars(Store(tmp_path / "whole"))
    assert verify(store) == [] and parts(tmp_path) == []


def test_a_killed_writer_leaves_nothing_behind(
    plain, parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, temporary = plain("image.size=128"), tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    store = Store(tmp_path / "data")
    write_claim(store, recipe, content_digest(recipe, versions()), ())
    process = subprocess.Popen([sys.executable, str(WRITER), str(tmp_path / "data")])
    while not parts(temporary) and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)
    left = parts(temporary)
    sweep_scratch.cache_clear()
    with scratch():
        assert parts(temporary)[: len(left)], "a living writer's folder is its own"
    process.kill()
    process.wait()
    sweep_scratch.cache_clear()
    with scratch() as folder:
        assert parts(temporary) == [folder.name]
    assert parts(temporary) == []
    store.sweep()
    assert parts(tmp_path) == []


@pytest.mark.ray
def test_a_store_that_fails_is_one_error_and_no_end_of_tries(
    ray_cluster, plain, tmp_path: Path
) -> None:
    recipe, store = plain("workers.max=1", "workers.num_cpus=0.5"), Store(tmp_path)
    write_claim(store, recipe, content_digest(recipe, versions()), ())
    (tmp_path / "shards").write_bytes(b"a file where the folder would be")
    with pytest.raises(FaultError, match=r"shard i.*: .*shards.*; the same command goes on"):
        generate(recipe, store, (), lambda line: None)
