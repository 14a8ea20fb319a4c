"""One trial: its pools, its composition, a recognizer for each seed, and their accuracies.

A trial reserves no CPUs or GPUs itself; a pool reserves its actors and a training its worker. A
trial therefore never holds resources that its own work waits for. Its files are in the sweep's
folder, where the same trial finds them when it is started again.
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
PAIRS = "pairs"
LAST = "last"
ENDED = "ended"  # the report of a trial without a result
STARTED = "started"  # the first row of a training, when its worker has started
Row = dict[str, Any]


@dataclass
class Judged:
    """Verifies a recognizer several times while it is trained.

    Attributes:
        reports: number of verifications; the last one is after the last step, on all pairs.
        pairs: number of pairs of each benchmark in the earlier ones.
        kept: these pairs, after they are read.
    """

    reports: int
    pairs: int
    kept: "list[Pairs] | None" = None

    def due(self, step: int, total: int) -> bool:
        """Tell whether to verify after this step."""
        return step == total or step % max(math.ceil(total / self.reports), 1) == 0

    def look(self, recipe: FRRecipe, weights: "dict[str, Tensor]", last: bool) -> dict[str, float]:
        """Return the average accuracy and that of each benchmark in [0, 1], and its pairs."""
        from factory.evaluation.verification import average, verify
        from factory.recognition.recognizers import load_recognizer, save_recognizer

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recognizer.safetensors"
            name, licence = recipe.name, recipe.licence
            save_recognizer(file, weights, recipe.backbone, recipe.image.size, name, licence)
            # In the training's precision, which moves cosines by less than 0.01.
            precision = "bfloat16" if recipe.engine.precision == "bfloat16" else "float32"
            recognizer = load_recognizer(str(file), precision)
        sets = self._whole(recipe.benchmarks) if last else self._few(recipe.benchmarks)
        found = [verify(recognizer, benchmark) for benchmark in sets]
        return {
            ACCURACY: average(found),
            LAST: float(last),
            **{f"{ACCURACY}.{result.name}": result.accuracy for result in found},
            **{f"{PAIRS}.{result.name}": result.pairs for result in found},
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
    """Return a fixed sample of a benchmark's pairs; half of them are genuine."""
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
    """The function that Ray Tune calls with a trial's number; it makes the trial's reports.

    Attributes:
        out: folder or URL of the sweep.
        folder: the driver's folder.
        pools: the actor of `Pools`.
        seeds: seeds of the recognizers.
        watch: verifies the recognizers.
        env: Ray's runtime environment of a training's worker.
        known: the known faces for the objective leakage; None without it.
    """

    out: str
    folder: str
    pools: Any
    seeds: tuple[int, ...]
    watch: Judged
    env: dict[str, Any]
    known: KnownFaces | None = None

    def __call__(self, config: dict[str, Any]) -> None:
        """Run a trial and report each verification; the last report has all results."""
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
        """Run the trial, and yield a report for each verification of a recognizer."""
        import ray
        from ray.exceptions import RayTaskError

        clock, start = Clock(), time.time()
        try:
            # Pools go by address, so that a pool with two names is made and counted once.
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
                        "benchmarks": _of_each(finals, ACCURACY),
                        "pairs": {k: int(n) for k, (n, *_) in _of_each(finals, PAIRS).items()},
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
    """Compose in a Ray task, and return the result of `composed`."""
    from factory.recognition.recognizers import checked_recognizer

    enter(folder)
    with held(out):
        made = compose(recipe, out, load=checked_recognizer)
    return composed(out, made, pools)


def leaking(recipe: ComposeRecipe, out: Store, known: KnownFaces, folder: str) -> float:
    """Measure the leakage of a composition in a Ray task."""
    enter(folder)
    assert recipe.recognizer is not None
    return leakage(out, load_composition(out), recipe.recognizer, known)


def _elsewhere(function: Callable[..., Any], env: dict[str, Any], *given: Any) -> tuple[float, Any]:
    """Run a function in a Ray task with a CPU of its own.

    The task does not wait for other work while it holds the CPU. Its worker has the environment of
    trainings, so that the next training can use it.

    Returns:
        Seconds until the task began, and its result.
    """
    import ray
    from ray.exceptions import RayTaskError

    # SPREAD, as for a training, because the trial's own reservation has no CPU.
    work = ray.remote(_begun).options(num_cpus=1, scheduling_strategy="SPREAD", runtime_env=env)
    asked = time.time()
    try:
        began, returned = ray.get(work.remote(function, *given))
    except RayTaskError as error:
        raise error.cause from None
    return max(began - asked, 0.0), returned


def _begun(function: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    import torch

    torch.set_num_threads(1)  # the task reserves one CPU
    return time.time(), function(*given)


class Clock:
    """Adds up wall time by activity."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, what: str, waited: float = 0.0) -> None:
        """Count the time since the last call as `what`, except `waited`, which is start-up."""
        now = time.monotonic()
        for name, spent in (("startup", waited), (what, now - self.last - waited)):
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)
        self.last = now


def composed(folder: Store, made: Composition, pools: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of a composition, and the cost of generating its images.

    Args:
        folder: the composition's folder.
        made: the composition.
        pools: results of `Pools.make`, by address.

    Returns:
        Counts, digests and seconds. An image in two views of a pool counts once in `images` and
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


def _of_each(finals: list[Row], what: str) -> dict[str, list[float]]:
    """Return for each benchmark what the last report of each seed says of it."""
    names = [name for name in (finals[0] if finals else {}) if name.startswith(f"{what}.")]
    return {name.partition(".")[2]: [final[name] for final in finals] for name in sorted(names)}


def trial_folder(number: int) -> str:
    """Return the name of a trial's folder inside the sweep's folder."""
    return f"trials/{number:04d}"


def trained(
    recipe: FRRecipe, out: str, watch: Judged, folder: str, env: dict[str, Any]
) -> Iterator[Row]:
    """Train a recognizer, or continue it, and yield the verified rows of its curve.

    A training with plain torch runs in a Ray task, which starts in a second, whereas Ray Train
    takes many. A training with several workers uses Ray Train.

    Args:
        recipe: an fr recipe.
        out: folder or URL of the recognizer.
        watch: verifies it.
        folder: the folder at which relative paths of the recipe start.
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
    # Tune puts a trial's tasks inside its own reservation, which is empty; SPREAD takes them out.
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
                if STARTED in row or row["step"] > seen:  # a restarted worker sends old rows again
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
    """Yield the verified rows while a thread trains; the thread's error is raised here."""
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
