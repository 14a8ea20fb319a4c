"""What Ray costs a generation: the same stages on an actor pool and in plain processes."""

import hashlib
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from factory import stops
from factory.engine import fill_bank, generate, runtime_env, wiring
from factory.plan import Shard, shards
from factory.provenance import versions
from factory.recipe import GenerateRecipe, content_digest
from factory.shards.claim import write_claim
from factory.shards.store import Store
from factory.stages.line import Assignment, Line
from factory.stages.work import ShardWork

Turn = tuple[str, float, float, int]  # worker, started, finished (epoch seconds), images


@dataclass(frozen=True)
class Side:
    """One side of the comparison.

    Attributes:
        images_per_sec: all workers together, in steady state.
        startup_sec: from the call to the first shard of the last worker to start.
        tars: sha256 of each shard, by name.
    """

    images_per_sec: float
    startup_sec: float
    tars: dict[str, str]


def steady(turns: Iterable[Turn]) -> float:
    """Return images/s of all workers from each one's second shard to the first idle worker.

    Args:
        turns: one entry a shard.

    Raises:
        ValueError: a worker has no shard in that window; there must be several a worker.
    """
    by_worker: dict[str, list[Turn]] = defaultdict(list)
    for turn in sorted(turns, key=lambda turn: turn[1]):
        by_worker[turn[0]].append(turn)
    idle = min(turns[-1][2] for turns in by_worker.values())
    speed = 0.0
    for worker, taken in by_worker.items():
        inside = [turn for turn in taken[1:] if turn[2] <= idle]
        if not inside:
            raise ValueError(f"worker {worker} has {len(taken)} shards; accepted are 3 or more")
        speed += sum(turn[3] for turn in inside) / (inside[-1][2] - inside[0][1])
    return speed


def on_ray(recipe: GenerateRecipe, folder: Path) -> Side:
    """Generate on the connected Ray."""
    store, _ = _prepare(recipe, folder)
    start = time.time()
    made = generate(recipe, store, (), lambda line: None)
    return _side(made.progress.rows, start, folder)


def in_processes(recipe: GenerateRecipe, folder: Path) -> Side:
    """Run the same stages on the same shards in as many processes, with no scheduler at all."""
    _, assignment = _prepare(recipe, folder)
    fused = recipe.pool.model_copy(update={"fused": True})
    stages = wiring(recipe.model_copy(update={"pool": fused}))[0].stages
    planned, size = list(shards(recipe)), recipe.pool.size
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    os.environ.update(runtime_env(recipe.pool.threads)["env_vars"])
    start = time.time()
    workers = [
        context.Process(target=_work, args=(assignment, stages, planned[n::size], str(n), queue))
        for n in range(size)
    ]
    with stops.shielded():
        for worker in workers:
            worker.start()
    turns = [queue.get(timeout=3600) for _ in planned]
    for worker in workers:
        worker.join()
    return _side(turns, start, folder)


def _prepare(recipe: GenerateRecipe, folder: Path) -> tuple[Store, Assignment]:
    from factory.systems import create

    made_with = versions()
    store, digest = Store(folder), content_digest(recipe, made_with)
    write_claim(store, recipe, digest, ())
    if create(recipe).banked:
        fill_bank(recipe, store, lambda line: None)
    return store, Assignment(recipe.model_dump(mode="json"), store, digest, made_with)


def _work(
    assignment: Assignment, stages: tuple[str, ...], planned: list[Shard], name: str, queue
) -> None:
    line = Line(assignment, stages)
    for shard in planned:
        started = time.time()
        line(ShardWork(shard))
        queue.put((name, started, time.time(), line.commit.manifest.kept))


def _side(turns: list[Turn], start: float, folder: Path) -> Side:
    first: dict[str, float] = {}
    for worker, started, *_ in sorted(turns, key=lambda turn: turn[1]):
        first.setdefault(worker, started)
    tars = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "shards").glob("*.tar"))
    }
    return Side(steady(turns), max(first.values()) - start, tars)
