"""One trial: pools, composition, a recognizer for each seed, what it reaches.

A trial reserves nothing itself. What costs reserves its own: a pool its actors, a training its
worker. So a trial never holds what its own work is waiting for. All it makes lies in the sweep's
folder, where the same trial, started again, finds it.
"""

import functools
import json
import math
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.datasets.compose import TooFewError, compose
from factory.datasets.composition import Composition, load_composition, read_rows
from factory.datasets.store import Store, below
from factory.recipe import (
    ComposeRecipe,
    Data,
    FaultError,
    FRRecipe,
    InputError,
    KnownFaces,
)
from factory.search.leakage import leakage
from factory.search.pools import enter, held
from factory.search.space import Trial
from factory.seeding import generator, seed64

if TYPE_CHECKING:
    from torch import Tensor

    from factory.evaluation.verification import Pairs
ACCURACY = "accuracy"
LAST = "last"
ENDED = "ended"  # the report of a trial that comes to nothing
STARTED = "started"  # the row a training begins with: its worker is there
Row = dict[str, Any]


@dataclass
class Judged:
    """Verifies a recognizer now and then while it is trained.

    Attributes:
        reports: how often, the last time after the last step, on all pairs.
        pairs: of each benchmark, before that.
        kept: these pairs, once they are read.
    """

    reports: int
    pairs: int
    kept: "list[Pairs] | None" = None

    def due(self, step: int, total: int) -> bool:
        """Tell whether to look after this step."""
        return step == total or step % max(math.ceil(total / self.reports), 1) == 0

    def look(self, recipe: FRRecipe, weights: "dict[str, Tensor]", last: bool) -> dict[str, float]:
        """Return the average accuracy and that of each benchmark, all in [0, 1]."""
        from factory.evaluation.verification import average, verify
        from factory.recognition.recognizers import load_recognizer, save_recognizer

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recognizer.safetensors"
            name, licence = recipe.name, recipe.licence
            save_recognizer(file, weights, recipe.backbone, recipe.image.size, name, licence)
            recognizer = load_recognizer(str(file))
        sets = self._whole(recipe.benchmarks) if last else self._few(recipe.benchmarks)
        found = [verify(recognizer, benchmark) for benchmark in sets]
        return {
            ACCURACY: average(found),
            LAST: float(last),
            **{f"{ACCURACY}.{result.name}": result.accuracy for result in found},
        }

    def _whole(self, folder: str) -> "list[Pairs]":
        from factory.evaluation.benchmarks import benchmark_folder
        from factory.evaluation.verification import bin_files, read_bin

        return [read_bin(file) for file in bin_files(benchmark_folder(folder)).values()]

    def _few(self, folder: str) -> "list[Pairs]":
        if self.kept is None:
            self.kept = [subset(benchmark, self.pairs) for benchmark in self._whole(folder)]
        return self.kept


def subset(benchmark: "Pairs", pairs: int) -> "Pairs":
    """Return some pairs of a benchmark, always the same ones, half of them genuine."""
    from factory.evaluation.verification import Pairs

    order = generator(seed64(0, f"subset/{benchmark.name}")).permutation(len(benchmark.same))
    same = benchmark.same[order]
    chosen = np.sort(
        np.concatenate([order[same][: -(-pairs // 2)], order[~same][: max(pairs // 2, 1)]])
    )
    images = tuple(benchmark.images[2 * n + side] for n in chosen for side in (0, 1))
    return Pairs(benchmark.name, images, benchmark.same[chosen])


@dataclass(frozen=True)
class Objective:
    """What Ray Tune calls: a trial's number becomes its reports.

    Attributes:
        out: folder or URL of the sweep.
        folder: of the driver.
        pools: the actor of `Pools`.
        seeds: of the recognizers.
        watch: how they are verified.
        env: Ray's runtime environment of a training's worker.
        known: where leakage is an objective, the faces it is measured against.
    """

    out: str
    folder: str
    pools: Any
    seeds: tuple[int, ...]
    watch: Judged
    env: dict[str, Any]
    known: KnownFaces | None = None

    def __call__(self, config: dict[str, Any]) -> None:
        """Run a trial and report each look at each recognizer; the last report has all results."""
        from ray import tune

        enter(self.folder)
        where = below(self.out, trial_folder(config["number"]))
        trial = Trial.of(json.loads(Store(where).read("trial.json")))
        with closing(self.reports(trial, where)) as reports:
            try:
                for report in reports:
                    tune.report(report)
            except (InputError, FaultError) as error:
                ended = "refused" if isinstance(error, TooFewError) else "failed"
                tune.report({ENDED: ended, "why": " ".join(str(error).split())})

    def reports(self, trial: Trial, where: str) -> Generator[dict[str, Any], None, None]:
        """Do what the trial says, yielding a report for each look at a recognizer."""
        import ray
        from ray.exceptions import RayTaskError

        clock, start = Clock(), time.time()
        try:
            # By address: a pool that is named twice is made, and counted, once.
            made = {
                url: ray.get(self.pools.make.remote(recipe, url))
                for url, recipe in {url: recipe for recipe, url in trial.pools.values()}.items()
            }
        except RayTaskError as error:
            raise error.cause from None
        clock.lap("pools")
        whole = below(where, "composition")
        composition = Store(whole)
        given = (trial.compose, composition, made, self.folder)
        waited, facts = _elsewhere(composing, self.env, *given)
        clock.lap("compose", waited)
        names = {url: name for name, (_, url) in reversed(trial.pools.items())}
        facts["pools"] = {names[url]: cost for url, cost in made.items()}
        if self.known is not None:
            given = (trial.compose, composition, self.known, self.folder)
            waited, facts["leakage"] = _elsewhere(leaking, self.env, *given)
            clock.lap("leakage", waited)
        finals: list[Row] = []
        for number, seed in enumerate(self.seeds):
            recipe = trial.fr.model_copy(update={"seed": seed, "data": Data(train=whole)})
            out = below(where, f"fr/seed{seed}")
            for row in trained(recipe, out, self.watch, self.folder, self.env):
                if STARTED in row:
                    clock.lap("startup")
                    continue
                last = bool(row[LAST])
                finals += [row] * last
                complete = last and number == len(self.seeds) - 1
                clock.lap("train")
                seen = [final[ACCURACY] for final in finals] if last else [row[ACCURACY]]
                yield {
                    ACCURACY: float(np.mean(seen)),
                    "seed": seed,
                    "step": int(row["step"]),
                    "loss": row["loss"],
                    "last": last,
                    "complete": complete,
                    "facts": {
                        **facts,
                        "accuracies": [final[ACCURACY] for final in finals],
                        "benchmarks": _benchmarks(finals),
                        "seconds": {**clock.seconds, "all": round(time.time() - start, 2)},
                        "started": start,
                    },
                }
            if len(finals) <= number:
                raise FaultError(
                    f"training of seed {seed} ended without its last report; delete "
                    f"{Store(out).url}, and the same command trains it again"
                )


def composing(
    recipe: ComposeRecipe, out: Store, pools: dict[str, Any], folder: str
) -> dict[str, Any]:
    """Compose in a Ray task, and return what `composed` says of it."""
    from factory.recognition.recognizers import load_recognizer

    enter(folder)
    with held(out):
        made = compose(recipe, out, load=load_recognizer)
    return composed(out, made, pools)


def leaking(recipe: ComposeRecipe, out: Store, known: KnownFaces, folder: str) -> float:
    """Measure in a Ray task how near a composition comes to known faces."""
    enter(folder)
    assert recipe.recognizer is not None
    return leakage(out, load_composition(out), recipe.recognizer, known)


def _elsewhere(function: Callable[..., Any], env: dict[str, Any], *given: Any) -> tuple[float, Any]:
    """Run a function on a CPU of its own, which it holds without waiting for another.

    Its worker has the environment of trainings, so that it serves the training that comes next.

    Returns:
        Seconds until it began, and what it returned.
    """
    import ray
    from ray.exceptions import RayTaskError

    # As of a training: inside the trial's own reservation there is no CPU.
    work = ray.remote(_begun).options(num_cpus=1, scheduling_strategy="SPREAD", runtime_env=env)
    asked = time.time()
    try:
        began, returned = ray.get(work.remote(function, *given))
    except RayTaskError as error:
        raise error.cause from None
    return max(began - asked, 0.0), returned


def _begun(function: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    import torch

    torch.set_num_threads(1)  # as many as it reserves
    return time.time(), function(*given)


class Clock:
    """Adds up wall time by what it went to."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, what: str, waited: float = 0.0) -> None:
        """Count the time since the last call, as start-up what a worker was waited for."""
        now = time.monotonic()
        for name, spent in (("startup", waited), (what, now - self.last - waited)):
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)
        self.last = now


def composed(folder: Store, made: Composition, pools: dict[str, Any]) -> dict[str, Any]:
    """Return what a composition holds, and what its images have cost to generate.

    Args:
        folder: of the composition.
        made: what it is.
        pools: as `Pools.make` returns it, by address.

    Returns:
        Counts and digests; an image that two views of a pool take counts once in `images` and
        `generation_seconds`.
    """
    rows, keys = read_rows(folder, made), {}
    for number, name in enumerate(rows.pools):
        keys.setdefault(made.pools[name].url, []).append(rows.key[rows.pool == number])
    images = {url: len(np.unique(np.concatenate(found))) for url, found in keys.items()}
    cost = sum(
        pools[url]["actor_seconds"] * count / max(pools[url]["images"], 1)
        for url, count in images.items()
        if url in pools
    )
    return {
        "images": sum(images.values()),
        "images_with_repeats": made.images_with_repeats,
        "identities": made.identities,
        "content_digest": made.content_digest,
        "licence": made.licence,
        "generation_seconds": round(cost, 2),
        "taken": {
            name: {
                "url": taken.url,
                "content_digest": taken.content_digest,
                "identities": taken.identities,
                "images": taken.images,
                "mean_cosine": taken.mean_cosine,
            }
            for name, taken in made.pools.items()
        },
    }


def _benchmarks(finals: list[Row]) -> dict[str, list[float]]:
    names = [name for name in (finals[0] if finals else {}) if name.startswith(f"{ACCURACY}.")]
    return {name.partition(".")[2]: [final[name] for final in finals] for name in sorted(names)}


def trial_folder(number: int) -> str:
    """Return the name of a trial's folder inside the sweep's."""
    return f"trials/{number:04d}"


def trained(
    recipe: FRRecipe, out: str, watch: Judged, folder: str, env: dict[str, Any]
) -> Iterator[Row]:
    """Train a recognizer, or continue one, yielding the rows of its curve that were looked at.

    A training of plain torch has a Ray task of its own, which starts in a second where Ray Train
    takes many; one of several workers goes through Ray Train.

    Args:
        recipe: what to train.
        out: folder or URL of the recognizer.
        watch: looks at it.
        folder: where relative paths of the recipe begin.
        env: Ray's runtime environment of the worker.

    Raises:
        InputError, FaultError: as `factory.training.recognition.run`.
    """
    from factory.training.output import RECORD

    store = Store(out)
    if store.exists(RECORD):
        yield {STARTED: True}
        yield from (row for row in json.loads(store.read(RECORD))["curve"] if ACCURACY in row)
    elif recipe.engine.name == "torch":
        yield from _alone(recipe, out, watch, folder, env)
    else:
        yield from _together(recipe, out, watch)


def _alone(
    recipe: FRRecipe, out: str, watch: Judged, folder: str, env: dict[str, Any]
) -> Iterator[Row]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    wanted, seen = recipe.engine, 0.0
    # Tune keeps what a trial starts inside the trial's own reservation, which is empty.
    work = ray.remote(_work).options(
        num_cpus=wanted.num_cpus,
        num_gpus=wanted.num_gpus,
        max_retries=0,
        scheduling_strategy="SPREAD",
        runtime_env=env,
    )
    for failures in range(wanted.max_failures + 1):
        rows: Any = work.remote(recipe, Store(out), watch, folder)
        try:
            for reference in rows:
                row: Any = ray.get(reference)
                if STARTED in row or row["step"] > seen:  # a restarted worker repeats its rows
                    seen = row.get("step", seen)
                    yield row
            return
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:  # the worker died
            if failures == wanted.max_failures:
                raise FaultError(f"training failed: {' '.join(str(error).split())}") from None
        finally:
            ray.cancel(rows, force=True)


def _work(recipe: FRRecipe, store: Store, watch: Judged, folder: str) -> Iterator[Row]:
    """Train in a Ray task."""
    import torch

    from factory.training import recognition
    from factory.training.output import claim
    from factory.training.workers import Worker

    enter(folder)
    device = torch.device("cuda" if recipe.engine.num_gpus else "cpu")

    def train(tell: Callable[[Row], None]) -> None:
        with held(store) as lock:

            def note(line: str, rows: list[Row], pictures: list[str]) -> None:
                lock.check()
                for row in rows:
                    tell(row)

            claim(store, recipe)
            recognition.run(recipe, store, Worker(device=device, note=note), watch=watch)

    yield {STARTED: True}
    yield from _told(train)


def _together(recipe: FRRecipe, out: str, watch: Judged) -> Iterator[Row]:
    from factory.training import recognition
    from factory.training.output import claim
    from factory.training.workers import launch

    with held(Store(out)) as lock:
        claim(Store(out), recipe)
        yield {STARTED: True}
        loop = functools.partial(recognition.run, watch=watch)
        yield from _told(lambda tell: launch(loop, recipe, out, tell, check_lock=lock.check))


def _told(train: Callable[[Callable[[Row], None]], Any]) -> Iterator[Row]:
    """Yield the rows that were looked at while a thread trains; its error is raised here."""
    told: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            train(told.put)
            told.put(None)
        except BaseException as error:  # raised below
            told.put(error)

    threading.Thread(target=work, name="training", daemon=True).start()
    while (item := told.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        if ACCURACY in item:
            yield item
