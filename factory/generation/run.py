"""The run of a generation, from the claim to the merged manifest.

The plan cuts the shards, every random draw is keyed by its position, and a shard is one row of Ray
Data (docs/contracts.md 3). The bytes are therefore the same with one actor or many, with separate
committers or without, and after an interruption.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from factory import stops
from factory.cluster import counters
from factory.cluster.capacity import Reservation, makers, require
from factory.cluster.ranges import away, over_tasks
from factory.cluster.workers import REPORTED, ActorPool, column, flow, reported
from factory.datasets import patience
from factory.datasets.claim import check_claim, planned, read_claim, write_claim
from factory.datasets.manifest import DatasetTotals, Inherited, committed, inherited, merge
from factory.datasets.provenance import models, versions
from factory.datasets.store import Lock, Store
from factory.generation.bank import fill_bank
from factory.generation.commit import Committer
from factory.generation.make import Maker
from factory.generation.screen import known_faces
from factory.generation.turns import Turns
from factory.generation.work import Assignment
from factory.plan import Extent, Shard, shards
from factory.recipe import FaultError, GenerateRecipe, content_digest
from factory.systems import create

LARGE = 2000  # shards from which on tasks list and merge; below it their start takes longer


class MakerActor:
    """A maker as a Ray Data actor; it also commits its shards if there are no committers."""

    def __init__(self, assignment: Assignment, commits: bool) -> None:
        """Load the maker, and a committer if `commits`."""
        self.make = Maker(assignment)
        self.commit = CommitterActor(assignment) if commits else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Make the shard of a row; an error is reported with the shard's name."""
        (shard,) = batch["shard"]
        started = time.time()
        try:
            work = self.make(shard)
        except REPORTED as error:
            return reported(error, f"shard {shard.name}: ")
        made = {
            "work": column(work),
            "actor": np.array([ray.get_runtime_context().get_actor_id()]),
            "started": np.array([started]),
        }
        return made if self.commit is None else self.commit(made)


class CommitterActor:
    """A committer as a Ray Data actor: it takes a made shard and returns its manifest."""

    def __init__(self, assignment: Assignment) -> None:
        """Make the committer."""
        self.commit = Committer(assignment)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Commit the shard of a row; an error is reported with the shard's name."""
        (work,) = batch["work"]
        try:
            manifest = self.commit(work)
        except REPORTED as error:
            return reported(error, f"shard {work.shard.name}: ")
        return {
            "manifest": column(manifest.model_dump(mode="json")),
            "actor": batch["actor"],
            "started": batch["started"],
            "finished": np.array([time.time()]),
        }


def reservations(recipe: GenerateRecipe) -> list[Reservation]:
    """Return what a recipe's makers reserve, and its committers if it has any."""
    workers, found = recipe.workers, [makers(recipe.workers)]
    if workers.committers:
        count, cpus = workers.committers, workers.committer_num_cpus
        found.append(Reservation("workers.committers", "workers.committer_", count, cpus))
    return found


def pools(recipe: GenerateRecipe, assignment: Assignment) -> list[ActorPool]:
    """Return a recipe's actor pools, in the order in which a shard passes through them."""
    workers = recipe.workers
    made_by, *apart = reservations(recipe)
    commits = not apart
    found = [
        ActorPool(
            "Make", MakerActor, (assignment, commits), made_by, workers.least, workers.threads
        )
    ]
    for reserved in apart:
        found.append(ActorPool("Commit", CommitterActor, (assignment,), reserved, reserved.size))
    return found


def preflight(recipe: GenerateRecipe) -> None:
    """Refuse a recipe whose actor pools the connected cluster can never schedule."""
    require(reservations(recipe))


@dataclass
class Progress:
    """The progress of a generation."""

    shards: int
    shards_done: int = 0
    kept: int = 0
    tried: int = 0
    rows: Turns = field(default_factory=Turns)

    def add(self, row: dict[str, Any]) -> None:
        """Count one committed shard."""
        manifest = row["manifest"]
        self.shards_done += 1
        self.kept += manifest["kept"]
        self.tried += manifest["kept"] + sum(manifest["reasons"].values())
        self.rows.append((row["actor"], row["started"], row["finished"], manifest["kept"]))

    def line(self, before: int) -> str:
        """Return one line: shards, images/s, kept share, time left.

        Both rates count from when the first actor began to work, since its start says nothing of
        its speed.

        Args:
            before: shards that earlier runs committed.
        """
        rows = self.rows
        left = (self.shards - before - self.shards_done) * rows.each / len(rows.actors)
        return (
            f"shards {before + self.shards_done}/{self.shards}"
            f"  {self.kept / max(rows.span, 1e-6):.1f} images/s"
            f"  kept {100 * self.kept / max(self.tried, 1):.1f} %  ETA {left:.0f} s"
        )


@dataclass(frozen=True)
class Generated:
    """The result of a generation: the dataset's totals, and what this run did.

    Attributes:
        totals: of the dataset's manifest.
        shards: how many shards the dataset has.
        progress: of this run.
        found: how many shards were committed before this run.
    """

    totals: DatasetTotals
    shards: int
    progress: Progress
    found: int


def check_sources(recipe: GenerateRecipe) -> Inherited | None:
    """Open everything that a generation reads, before any folder is touched.

    Returns:
        Models and licences of the datasets that it draws from; None if it draws from none.

    Raises:
        InputError: weights, datasets or known faces differ from what the recipe says of them.
    """
    system = create(recipe)
    system.open()
    handed_down = inherited(system.origins())
    models(recipe.weights)
    known_faces(recipe)
    return handed_down


def fill(
    recipe: GenerateRecipe,
    lock: Lock,
    handed_down: Inherited | None,
    say: Callable[[str], None],
    extend: bool = False,
) -> Generated:
    """Claim a dataset's folder for a recipe and make the shards that it lacks.

    Args:
        recipe: a recipe that states the sha256 of its weights (`provenance.pinned`) and a fixed
            precision (`precision.settled`).
        lock: the lock of the dataset's folder, held by the caller.
        handed_down: the result of `check_sources`.
        say: receives one line of progress at a time.
        extend: whether a smaller dataset of the same recipe may grow.

    Raises:
        InputError: the store holds another recipe's dataset, or weights differ from what the
            recipe says; or as `generate`.
        FaultError: as `generate`.
    """
    assert all(part.sha256 for part in recipe.weights.values()), "the digest would be blind"
    store, made_with = lock.store, versions()
    grown = check_claim(store, recipe, made_with, extend)
    digest = content_digest(recipe, made_with)
    write_claim(store, recipe, digest, grown, handed_down, models(recipe.weights))
    store.sweep()
    return generate(recipe, store, grown, say, lock.check)


def generate(
    recipe: GenerateRecipe,
    store: Store,
    grown: tuple[Extent, ...],
    say: Callable[[str], None],
    check_lock: Callable[[], None] = lambda: None,
) -> Generated:
    """Make every planned shard that is not committed yet, then merge the manifests.

    Args:
        recipe: a checked recipe, for which the store is claimed (`datasets.claim`).
        store: the dataset's folder, locked by the caller.
        grown: extents that the dataset had before it was extended.
        say: receives one line of progress at a time.
        check_lock: is called once a shard; it raises if another writer took the folder.

    Raises:
        InputError: the cluster cannot schedule what the recipe reserves, or a worker found a
            mistake of the user's, such as weights that are missing on its node.
        FaultError: a disk, store or GPU failed for good, or a planned shard is missing at the end.
    """
    preflight(recipe)
    system = create(recipe)
    if system.banked:
        for line in system.remarks(fill_bank(recipe, store, say, check_lock).contexts):
            say(line)
    done = committed(store)
    count = sum(1 for _ in shards(recipe, grown))
    found = sum(shard.name in done for shard in shards(recipe, grown)) if done else 0
    todo = (shard for shard in shards(recipe, grown) if shard.name not in done)
    progress = Progress(count)
    if found:
        say(f"resuming: {found} of {count} shards are committed")
    with stops.keeping(lambda: f"{len(committed(store))} of {count} shards are committed"):
        for row in _run(recipe, store, todo) if found < count else ():
            check_lock()
            progress.add(row)
            made = row["manifest"]
            counts = made["kept"], made["reasons"], made["seconds"]
            counters.shard(recipe.name, recipe.system, *counts)
            say(progress.line(found))
    if count < LARGE:
        totals, made = finish(store, patience.alone)
    else:
        totals, made = away(finish, store, over_tasks)
    return Generated(totals, made, progress, found)


def finish(store: Store, spread: patience.InRanges) -> tuple[DatasetTotals, int]:
    """Merge the manifests of a dataset that is made; return its totals and number of shards.

    A large dataset's driver has a task do it, so that it holds no list of shards itself.

    Args:
        store: the dataset's folder.
        spread: where ranges of manifests are read.

    Raises:
        FaultError: a planned shard is missing.
    """
    claim, done = read_claim(store), committed(store)
    missing = [shard.name for shard in planned(claim) if shard.name not in done]
    if missing:
        raise FaultError(f"{len(missing)} planned shards are missing, the first {missing[0]}")
    merged = merge(store, planned(claim), spread)
    return merged.totals, len(merged.shards)


def _run(recipe: GenerateRecipe, store: Store, todo: Iterable[Shard]) -> Iterator[dict[str, Any]]:
    """Yield a row for each shard with its manifest, in the order in which shards are committed."""
    made_with = versions()
    assignment = Assignment(
        recipe.model_dump(mode="json"), store, content_digest(recipe, made_with), made_with
    )
    rows = ({"shard": shard} for shard in todo)
    yield from flow(rows, pools(recipe, assignment), f"output {store.url}: ")
