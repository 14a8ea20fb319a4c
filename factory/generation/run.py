"""The run of a generation, from the claim to the merged manifest.

The plan cuts the shards, every random draw is keyed by its position, and a shard is one row of Ray
Data (docs/contracts.md 3). The bytes are therefore the same with one actor or many, with separate
committers or without, and after an interruption.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from factory import stops
from factory.cluster import counters
from factory.cluster.capacity import require
from factory.cluster.ranges import InRanges, alone, away, over_tasks
from factory.cluster.watch import FlowWatch, stuck_sec
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
from factory.nodes import reservations
from factory.plan import Extent, Shard, hours, shards
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
            "commit_sec": np.array([work.seconds["commit"]]),
            "repeats": column(patience.taken()),
        }


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
    """Refuse a recipe whose actor pools the connected cluster can never schedule.

    So is a FACTORY_STUCK_SEC that is no number, before anything is written.
    """
    stuck_sec()
    require(reservations(recipe))


@dataclass
class Progress:
    """The progress of a generation.

    Attributes:
        shards: how many are planned.
        shards_done, kept, tried: shards committed by this run, and their images.
        rows: actor, start, end and images of each of these shards.
        repeats: how often requests to the store were repeated, by reason.
        again: how many shards were made again.
        nodes, actors: how many were at work when the watch last looked.
        begun: when the run began, in monotonic seconds.
    """

    shards: int
    shards_done: int = 0
    kept: int = 0
    tried: int = 0
    rows: Turns = field(default_factory=Turns)
    repeats: Counter[str] = field(default_factory=Counter)
    again: int = 0
    nodes: int = 0
    actors: int = 0
    begun: float = field(default_factory=time.monotonic)

    def add(self, row: dict[str, Any]) -> None:
        """Count one committed shard."""
        manifest = row["manifest"]
        self.shards_done += 1
        self.kept += manifest["kept"]
        self.tried += manifest["kept"] + sum(manifest["reasons"].values())
        self.repeats.update(row["repeats"])
        self.rows.append((row["actor"], row["started"], row["finished"], manifest["kept"]))

    def numbers(self, before: int) -> dict[str, float]:
        """Return shards, images/s, kept share and seconds left, nodes and actors at work.

        Both rates count from when the first actor began to work, since its start says nothing of
        its speed.

        Args:
            before: shards that earlier runs committed.
        """
        found: dict[str, float] = {"shards": before + self.shards_done}
        if self.shards_done:
            rows = self.rows
            left = (self.shards - before - self.shards_done) * rows.each / len(rows.actors)
            found |= {
                "images_per_second": self.kept / max(rows.span, 1e-6),
                "kept_share": self.kept / max(self.tried, 1),
                "eta_seconds": left,
            }
        return found | {"nodes": self.nodes, "actors": self.actors}

    def line(self, before: int) -> str:
        """Return these numbers as one line.

        Args:
            before: shards that earlier runs committed.
        """
        found = self.numbers(before)
        words = [f"shards {found['shards']:.0f}/{self.shards}"]
        if not self.shards_done:
            words.insert(0, "begun:")  # a line of another kind: the first shard's comes at once
        if "eta_seconds" in found:
            words.append(f"{found['images_per_second']:.1f} images/s")
            words.append(f"kept {100 * found['kept_share']:.1f} %")
            words.append(f"ETA {found['eta_seconds']:.0f} s")
        words.append(f"nodes {self.nodes}  actors {self.actors}")
        if self.again:
            words.append(f"made again {self.again}")
        if self.repeats:
            words.append(f"store repeats {self.repeats.total()}")
        words.append(f"after {hours((time.monotonic() - self.begun) / 3600)}")
        return "  ".join(words)


@dataclass
class Show:
    """What a long run tells besides its lines.

    Attributes:
        beat: receives the line of progress every few seconds, from another thread.
        note: receives the numbers of that line when a shard is committed.
    """

    beat: Callable[[str], None] = lambda line: None
    note: Callable[[Mapping[str, float]], None] = lambda numbers: None


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
    show: Show | None = None,
) -> Generated:
    """Claim a dataset's folder for a recipe and make the shards that it lacks.

    Args:
        recipe: a recipe that states the sha256 of its weights (`provenance.pinned`) and a fixed
            precision (`precision.settled`).
        lock: the lock of the dataset's folder, held by the caller.
        handed_down: the result of `check_sources`.
        say: receives one line of progress at a time.
        extend: whether a smaller dataset of the same recipe may grow.
        show: as of `generate`.

    Raises:
        InputError: the store holds another recipe's dataset, or weights differ from what the
            recipe says; or as `generate`.
        FaultError: as `generate`.
    """
    assert all(part.sha256 for part in recipe.weights.values()), "the digest would be blind"
    store, made_with = lock.store, versions(recipe.weights)
    grown = check_claim(store, recipe, made_with, extend)
    digest = content_digest(recipe, made_with)
    write_claim(store, recipe, digest, grown, handed_down, models(recipe.weights))
    store.sweep()
    return generate(recipe, store, grown, say, lock.check, show)


def generate(
    recipe: GenerateRecipe,
    store: Store,
    grown: tuple[Extent, ...],
    say: Callable[[str], None],
    check_lock: Callable[[], None] = lambda: None,
    show: Show | None = None,
) -> Generated:
    """Make every planned shard that is not committed yet, then merge the manifests.

    A shard at which processes end time and again is left out (`cluster.watch`); all others are
    committed before that is an error.

    Args:
        recipe: a checked recipe, for which the store is claimed (`datasets.claim`).
        store: the dataset's folder, locked by the caller.
        grown: extents that the dataset had before it was extended.
        say: receives one line of progress at a time.
        check_lock: is called once a shard; it raises if another writer took the folder.
        show: for whoever watches a long run.

    Raises:
        InputError: the cluster cannot schedule what the recipe reserves, or a worker found a
            mistake of the user's, such as weights that are missing on its node.
        FaultError: a disk, store or GPU failed for good, or a planned shard is missing at the end.
    """
    show = Show() if show is None else show
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
    watch = FlowWatch(_task, leaves_out=True)

    def beat() -> None:
        progress.nodes, progress.actors = watch.nodes, watch.actors
        counters.at_work(recipe.name, recipe.system, watch.nodes, watch.actors)
        counters.again(recipe.name, recipe.system, watch.again - progress.again)
        progress.again = watch.again
        show.beat(progress.line(found))

    watch.beat = beat
    with stops.keeping(
        lambda: f"{len(committed(store))} of {count} shards are committed", store.sweep
    ):
        for row in _run(recipe, store, todo, watch) if found < count else ():
            check_lock()
            progress.add(row)
            _count(recipe, row)
            say(progress.line(found))
            show.note(progress.numbers(found))
    if progress.repeats:
        say(f"store {store.url}: {patience.said(progress.repeats)}")
    if watch.left_out:
        raise FaultError(
            f"output {store.url}: {len(watch.left_out)} of {count} shards failed, all others are "
            f"committed: {'; '.join(watch.left_out)}; the same command tries them again"
        )
    if count < LARGE:
        totals, made = finish(store, alone)
    else:
        totals, made = away(finish, store, over_tasks)
    return Generated(totals, made, progress, found)


def finish(store: Store, spread: InRanges) -> tuple[DatasetTotals, int]:
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


def _task(row: dict[str, Any]) -> tuple[str, int]:
    """Return the name and the size of a shard's row, for the watch."""
    return f"shard {row['shard'].name}", row["shard"].samples


def _count(recipe: GenerateRecipe, row: dict[str, Any]) -> None:
    """Count a committed shard among the cluster's metrics."""
    made = row["manifest"]
    counters.shard(recipe.name, recipe.system, made["kept"], made["reasons"], made["seconds"])
    counters.committed(recipe.name, recipe.system, row["commit_sec"], row["repeats"])


def _run(
    recipe: GenerateRecipe, store: Store, todo: Iterable[Shard], watch: FlowWatch
) -> Iterator[dict[str, Any]]:
    """Yield a row for each shard with its manifest, in the order in which shards are committed."""
    made_with = versions(recipe.weights)
    assignment = Assignment(
        recipe.model_dump(mode="json"), store, content_digest(recipe, made_with), made_with
    )
    rows = ({"shard": shard} for shard in todo)
    yield from flow(rows, pools(recipe, assignment), f"output {store.url}: ", watch)
