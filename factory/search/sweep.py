"""The sweep: Ray Tune runs a space's trials, and the folder keeps what came of each.

OUT/sweep.json             the claim: which space this folder is for; at the end, what it took
OUT/trials/NNNN/trial.json    a trial's point and recipes, written before it starts
OUT/trials/NNNN/result.json   what it came to, written when it ends: a trial without is not done
OUT/trials/NNNN/composition/, fr/seedS/   what it made
OUT/best/                  the recipes of the best trial

Tune keeps nothing that a resumed sweep would need: trials are numbered, what is tried next follows
from the results in the folder, and a trial that had begun finds its own checkpoints.
"""

import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from factory import stops
from factory.cluster import counters
from factory.cluster.capacity import cpus, gpus, require, trainers
from factory.cluster.precision import settled
from factory.cluster.workers import runtime_env
from factory.datasets.claim import differences
from factory.datasets.manifest import MANIFEST
from factory.datasets.store import LOCK, PART, Store, below, parted
from factory.evaluation.verification import bin_files
from factory.generation.run import check_sources, preflight
from factory.recipe import (
    AUTO,
    FaultError,
    InputError,
    keyless,
    local_path,
    public,
    stated_precision,
    with_options,
)
from factory.recognition.faces import load_faces
from factory.search.leakage import checked_recognizer
from factory.search.results import BEST, SWEEP, best, front, generation, overhead, startup
from factory.search.space import OBJECTIVES, Space, Trial
from factory.search.tracked import Tracked
from factory.search.trial import ACCURACY, ENDED, Judged, Objective, Pools, trial_folder
from factory.seeding import seed64
from factory.training import recognition

RAY = "ray"  # Tune's own notes, below the output while it runs
# A trial only waits for what it started, which reserves for itself; Tune wants something, a byte.
RESERVED: Any = {"cpu": 0, "memory": 1}
# Making a pool again only makes what is missing: a lost node costs the shards it had in work.
POOLS: Any = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
LOST = 2  # nodes a trial may lose: it goes on from its folder
TPE_DRAWS = 50  # of a point that was not refused; then the last one is tried all the same
TPE_RANDOM = 5  # trials drawn by their number before TPE has enough to go by

Say = Callable[[str], None]


def sweep(
    space: Space,
    out: str,
    samples: int,
    pools: str,
    concurrent: int,
    tracking_uri: str,
    say: Say,
) -> dict[str, Any]:
    """Run a space's trials on the connected Ray cluster, or those that are left of them.

    Args:
        space: what to try.
        out: folder or URL of the sweep, reachable by all workers.
        samples: trials in all; a finished sweep grows by asking for more.
        pools: folder or URL below which pools lie, shared by sweeps.
        concurrent: trials at a time; 0 for as many as the cluster holds.
        tracking_uri: of MLflow.
        say: receives one line of progress at a time.

    Returns:
        The content of `sweep.json`.

    Raises:
        InputError: the space, one of its recipes or `out` is at fault.
        FaultError: trials failed; the others are kept, and the same command tries those again. Or
            none finished.
    """
    for flag, url in (("--out", out), ("--pools", pools)):
        keyless(url, what=f"{flag}: ")  # recipes of its trials name what lies there
    started, store = time.time(), Store(out)
    space.check_samples(samples)
    book = Book(store, space)
    space = book.space = replace(space, precision=book.precision(samples, say))
    book.check(pools)
    ahead = [space.trial(n, space.draw(n), pools) for n in range(samples)]
    done = book.results()
    check_inputs(space, [trial for trial in ahead if trial.number not in done])
    most = fitting(ahead)
    if not 0 <= concurrent <= most:
        raise InputError(
            f"--concurrent {concurrent}: accepted are 1 to {most}, or 0 for {most}, "
            "by what a trial's work reserves and the cluster has"
        )
    concurrent = concurrent or most
    with store.lock("sweep"), Tracked(tracking_uri, space, store, book.run_id, say) as tracked:
        book.claim(tracked.run.id, samples)
        store.sweep()
        done = book.results()
        todo = [n for n in range(samples) if n not in done]
        if done:
            say(f"resuming: {len(done)} of {samples} trials are done")
        following = Following(book, tracked, say, samples)
        if todo:
            objective = Objective(
                out=out,
                folder=os.getcwd(),
                pools=ray.remote(**POOLS)(Pools).remote(os.getcwd()),
                seeds=space.seeds,
                watch=Judged(space.reports, space.pairs),
                env=runtime_env(ahead[0].fr.engine.threads),
                known=space.known,
            )
            with stops.keeping(lambda: f"{len(book.results())} of {samples} trials are done"):
                run(objective, Suggestions(space, book, list(todo), pools), following, concurrent)
        results = book.results()
        spent = round(time.time() - started, 2)
        at_once = min(concurrent, len(todo))
        summary = book.summary(space, results, spent, set(todo), at_once, following.failed)
        finish(store, summary, results)
        tracked.finish(summary)
        check_ended(results, following.failed, samples)
    return summary


def check_inputs(space: Space, trials: list[Trial]) -> None:
    """Raise InputError where trials would only find out after hours that something is not there.

    That is benchmarks, known faces, recognizers, datasets, and what missing pools are made from.
    """
    if not trials:
        return
    bin_files(local_path(space.benchmarks))
    recognition.check(trials[0].fr)
    named = [trial.compose.recognizer for trial in trials]
    for recognizer in {(p.location, p.sha256): p for p in named if p is not None}.values():
        sha256 = checked_recognizer(recognizer).sha256
        if space.known is not None:
            load_faces(space.known.location, space.known.sha256, sha256, "space known")
    made = {url: recipe for trial in trials for recipe, url in trial.pools.values()}
    for url, recipe in made.items():
        if not Store(url).exists(MANIFEST):
            check_sources(recipe)
    views = {view.url: (n, view) for trial in trials for n, view in trial.compose.pools.items()}
    for url, (name, view) in views.items():
        if url not in made and view.weight and not Store(url).exists(MANIFEST):
            raise InputError(
                f"recipe field pools.{name}.url: {public(url)} holds no finished dataset"
            )


def check_ended(results: dict[int, dict[str, Any]], failed: dict[int, str], samples: int) -> None:
    """Raise FaultError where trials failed, or none of them finished."""
    if failed:
        number, why = next(iter(failed.items()))
        raise FaultError(
            f"{len(failed)} of {samples} trials failed, the first, {number}: {why}; the "
            "others are kept, and the same command tries these again"
        )
    if all(result["state"] != "finished" for result in results.values()):
        ends = [
            f"; the last, {number}, was {result['state']}: {result.get('why', 'it looked poor')}"
            for number, result in sorted(results.items())
        ]
        raise FaultError(f"none of {samples} trials finished{''.join(ends[-1:])}")


def fitting(trials: list[Trial]) -> int:
    """Return how many trials the connected cluster holds at a time, by what trainings reserve.

    Raises:
        InputError: it does not hold the work of one.
    """
    asked = trials[0].fr.engine
    require([trainers(asked)])
    for recipe in {url: recipe for t in trials for recipe, url in t.pools.values()}.values():
        preflight(recipe)
    most = cpus() / max(asked.workers * asked.num_cpus, 1.0)
    if asked.num_gpus:
        most = min(most, gpus() / (asked.workers * asked.num_gpus))
    return max(int(most), 1)


def run(
    objective: Objective, suggestions: "Suggestions", following: "Following", concurrent: int
) -> None:
    """Let Tune run trials until all that are suggested have ended."""
    store, book = suggestions.book.store, suggestions.book
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # who comes to nothing reports none
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # lines of progress are ours
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep, not its trials alone
    notes = str(store.root / RAY) if store.root else below(objective.out, RAY)
    tuner = tune.Tuner(
        tune.with_resources(functools.partial(_call, objective), RESERVED),
        tune_config=tune.TuneConfig(
            search_alg=suggestions,
            scheduler=scheduler(suggestions.space, book),
            num_samples=len(suggestions.todo),
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"run-{time.time_ns()}",
            storage_path=notes,
            failure_config=tune.FailureConfig(max_failures=LOST),
            callbacks=[following],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        ray.kill(objective.pools)
        for name in list(store.list(RAY)):
            store.delete(name)
        if store.root is not None:
            shutil.rmtree(store.root / RAY, ignore_errors=True)


def _call(objective: Objective, config: dict[str, Any]) -> None:
    objective(config)


class Book:
    """What the folder of a sweep says of its trials."""

    def __init__(self, store: Store, space: Space) -> None:
        """Read the claim; InputError when it is another space's."""
        self.store, self.space = store, space
        self.held: dict[str, Any] = {}
        if store.exists(SWEEP):
            self.held = json.loads(store.read(SWEEP))
            described = json.loads(json.dumps(space.described()))
            other = list(differences(self.held["space"], described))
            if other:
                name, old, new = other[0]
                raise InputError(
                    f"--out {store.url}: holds another search, whose {name} is {old!r}, not {new!r}"
                )
        elif any(name != LOCK and PART not in name for name in store.list()):
            raise InputError(f"--out {store.url}: holds something else; accepted: another folder")

    @property
    def run_id(self) -> str:
        """Return the id of the sweep's MLflow run, "" when it has none yet."""
        return self.held.get("run_id", "")

    def precision(self, samples: int, say: Say) -> dict[str, str]:
        """Return what `auto` means in the trials' recipes: as claimed, else as the cluster is.

        Args:
            samples: trials in all.
            say: receives a line.

        Raises:
            InputError: the nodes that can do the work differ.
        """
        if "precision" in self.held or "runs" in self.held:
            # A sweep begun before `auto` was known computed in what was the default.
            return self.held.get("precision", {"generate": "bfloat16", "fr": "bfloat16"})
        space, found = self.space, {}
        drawn = (recipe for n in range(samples) for recipe in space.generated(space.draw(n)))
        asked = {
            "generate": next((r for r in drawn if stated_precision(r) == AUTO), None),
            "fr": space.recognizer(),
        }
        for kind, recipe in asked.items():
            if recipe is not None and stated_precision(recipe) == AUTO:
                found[kind] = stated_precision(settled(recipe, say))
        return found

    def claim(self, run_id: str, samples: int) -> None:
        """State whose folder it is, and how many trials are asked for."""
        now = {"space": self.space.described(), "run_id": run_id, "samples": samples, "failed": []}
        now["precision"] = dict(self.space.precision)
        self.held = {"runs": [], **self.held, **now}
        self.store.write(SWEEP, _json(self.held))
        self.store.write("space.py", self.space.source.encode())

    def check(self, pools: str) -> None:
        """Raise InputError when a trial that has begun would be another one now.

        The space's fields do not tell: its function and its recipes' files may have changed.
        """
        for begun in self._each("trial.json"):
            number = begun["number"]
            old, new = Trial.of(begun), self.space.trial(number, begun["point"], pools)
            for field, was, now in differences(_decides(old), _decides(new)):
                raise InputError(
                    f"--out {self.store.url}: trial {number} has begun with {field} {was!r}, which "
                    f"the space and its recipes now say is {now!r}; accepted are the files as they "
                    "were, or another folder"
                )

    def _each(self, file: str) -> Iterator[dict[str, Any]]:
        for name in self.store.list("trials"):
            if name.endswith(f"/{file}") and name.count("/") == 2:
                yield json.loads(self.store.read(name))

    def results(self) -> dict[int, dict[str, Any]]:
        """Return the results of all trials that are done, by number."""
        found = self._each("result.json")
        return {result["number"]: result for result in sorted(found, key=lambda r: r["number"])}

    def begun(self, number: int) -> dict[str, Any] | None:
        """Return what was written before a trial began; None if it never began."""
        name = f"{trial_folder(number)}/trial.json"
        return json.loads(self.store.read(name)) if self.store.exists(name) else None

    def begin(self, trial: Trial) -> None:
        """Write what a trial is before it begins."""
        self.note(trial.number, trial.as_dict())

    def note(self, number: int, values: dict[str, Any]) -> None:
        """Write or extend what is known of a trial before it ends."""
        whole = {**(self.begun(number) or {}), **values}
        self.store.write(f"{trial_folder(number)}/trial.json", _json(whole))

    def end(self, result: dict[str, Any]) -> None:
        """Write what a trial came to."""
        self.store.write(f"{trial_folder(result['number'])}/result.json", _json(result))

    def summary(
        self,
        space: Space,
        results: dict[int, dict[str, Any]],
        seconds: float,
        ran: set[int],
        concurrent: int,
        failed: dict[int, str],
    ) -> dict[str, Any]:
        """Write and return what the sweep came to.

        Args:
            space: what was tried.
            results: of all trials that are done, by number.
            seconds: wall time of this run.
            ran: the trials that were left to it.
            concurrent: how many of them it ran at a time.
            failed: why some of them did, by number.
        """
        mine = [r for n, r in results.items() if n in ran and r["state"] != "refused"]
        if mine:
            self.held["runs"].append(
                {
                    "seconds": seconds,
                    "trials": len(mine),
                    "trial_seconds": round(sum(r["seconds"]["all"] for r in mine), 2),
                    "concurrent": concurrent,
                }
            )
        counted = [r for r in results.values() if r["state"] != "refused"]
        finished = [r for r in counted if r["state"] == "finished"]
        self.held |= {
            "done": len(results),
            "failed": [
                {"number": n, "point": begun["point"], "state": "failed", "why": why}
                for n, why in sorted(failed.items())
                if (begun := self.begun(n)) is not None and n not in results
            ],
            "best": best(finished, space.objectives),
            "front": front(finished, space.objectives),
            "overhead": overhead(self.held["runs"]),
            "startup_seconds": startup(counted),
            "generation": generation(counted),
        }
        self.store.write(SWEEP, _json(self.held))
        return self.held


def _decides(trial: Trial) -> Any:
    """Return what results follow from: neither where things lie nor what work reserves.

    The name of a pool's folder has the digest of its content, library versions included.
    """
    whole = trial.as_dict()
    for name, pool in whole["pools"].items():
        pool["recipe"] = _without(pool["recipe"], "pool", "cost")
        del whole["compose"]["pools"][name]["url"]
    precision = trial.fr.engine.precision
    fr = _without(whole["fr"], "engine", "checkpoint", "data", "seed")
    whole["fr"] = fr | {"engine.precision": precision}
    return _placeless(json.loads(json.dumps(whole)))


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _placeless(values: Any) -> Any:
    """Keep of each address its last part, which a copy of the folder has too, and its options."""
    if not isinstance(values, dict):
        return values
    return {
        name: _last(value) if name in ("url", "location", "benchmarks") else _placeless(value)
        for name, value in values.items()
    }


def _last(address: str) -> str:
    file, options = with_options(address)
    name = parted(file)[0].rpartition("/")[2]
    return f"{name}?{urlencode(options)}" if options else name


class Suggestions(Searcher):
    """Hands out trials by number; their points follow from the number, or from results so far."""

    def __init__(self, space: Space, book: Book, todo: list[int], pools: str) -> None:
        super().__init__(metric=ACCURACY, mode="max")
        self.space, self.book, self.todo, self.pools = space, book, todo, pools

    def suggest(self, trial_id: str) -> Any:
        """Return the number of the next trial, having written what it is."""
        if not self.todo:
            return Searcher.FINISHED
        number = self.todo.pop(0)
        if self.book.begun(number) is None:
            random = self.space.search != "tpe" or number < TPE_RANDOM
            point = self.space.draw(number) if random else tpe(self.space, self.book, number)
            self.book.begin(self.space.trial(number, point, self.pools))
        self.book.note(number, {"asked": time.time()})
        return {"number": number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the results are read from the folder."""

    def __getstate__(self) -> dict[str, Any]:
        """Let Tune pickle nothing, as `Following`."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: what is suggested follows from the folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""


def tpe(space: Space, book: Book, number: int) -> dict[str, Any]:
    """Return the point optuna's TPE draws for a trial, given the results there are.

    Values of an axis are told to it by their place, so that lists can be values. Stopped trials
    count as pruned where there is one objective, and where there are several, which optuna prunes
    not, by their last accuracy. A point that was refused is drawn again.
    """
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import TrialState, create_trial

    from factory.search.space import Choice

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    axes: dict[str, BaseDistribution] = {}
    for name, axis in space.axes.items():
        if isinstance(axis, Choice):
            last = len(axis.values) - 1
            axes[name] = (
                IntDistribution(0, last)
                if axis.ordered
                else CategoricalDistribution(list(range(last + 1)))
            )
        else:
            axes[name] = FloatDistribution(axis.low, axis.high, log=axis.log)

    def places(point: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, axis in space.axes.items():
            value = point[name]
            found[name] = _place(axis.values, value) if isinstance(axis, Choice) else value
        return found

    sampler = optuna.samplers.TPESampler(
        seed=seed64(space.seed, "tpe", number) % 2**32, n_startup_trials=1, multivariate=True
    )
    goals: Any = [f"{OBJECTIVES[name]}imize" for name in space.objectives]
    study = optuna.create_study(directions=goals, sampler=sampler)
    refused = []
    for result in book.results().values():
        if result["state"] == "refused":
            refused.append(result["point"])
            continue
        stopped = result["state"] == "stopped" and len(goals) == 1
        curve = {row["iteration"]: row[ACCURACY] for row in result["curve"]}
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
                params=places(result["point"]),
                distributions=axes,
                values=None if stopped else [result[name] for name in space.objectives],
                intermediate_values=curve if len(goals) == 1 else None,
            )
        )
    point: dict[str, Any] = {}
    for _ in range(TPE_DRAWS):
        asked = study.ask(axes).params
        point = {
            name: axis.values[asked[name]] if isinstance(axis, Choice) else axis.kept(asked[name])
            for name, axis in space.axes.items()
        }
        if json.loads(json.dumps(point)) not in refused:
            break
    return point


def _place(values: tuple[Any, ...], value: Any) -> int:
    return [json.dumps(one) for one in values].index(json.dumps(value))


def scheduler(space: Space, book: Book) -> Any:
    """Return what stops trials early; of a resumed sweep it knows what trials before it reported.

    A trial's reports of all its seeds count on, so that trials are compared after equal work.
    """
    if space.asha is None:
        return FIFOScheduler()
    made = ASHAScheduler(
        metric=ACCURACY,
        mode="max",
        max_t=space.reports * len(space.seeds) + 1,
        grace_period=space.asha.grace,
        reduction_factor=space.asha.factor,
        stop_last_trials=False,
    )
    controller: Any = None
    for number, result in book.results().items():
        earlier: Any = SimpleNamespace(trial_id=f"earlier-{number}")
        made.on_trial_add(controller, earlier)
        for row in result["curve"]:
            reported = {"training_iteration": row["iteration"], ACCURACY: row[ACCURACY]}
            made.on_trial_result(controller, earlier, reported)
    return made


class Following(tune.Callback):
    """Writes down in the driver what trials report."""

    def __init__(self, book: Book, tracked: Tracked, say: Say, samples: int) -> None:
        self.book, self.tracked, self.say, self.samples = book, tracked, say, samples
        self.curves: dict[int, list[dict[str, Any]]] = {}
        self.failed: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Let Tune pickle nothing: it would keep a copy, which nobody reads."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Begin a trial's run in MLflow, or go on with it."""
        number = trial.config["number"]
        self.curves[number] = []
        self.book.note(number, {"run_id": self.tracked.begin(self._begun(number))})

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note one look at a recognizer."""
        if ENDED in result:
            return
        number = trial.config["number"]
        row = {name: result[name] for name in ("seed", "step", "loss", ACCURACY)}
        row["iteration"] = result["training_iteration"]
        self.curves[number].append(row)
        self.tracked.report(number, row)
        self.say(
            f"trial {number + 1}/{self.samples} {trial_name(self._begun(number)['point'])}: seed "
            f"{row['seed']}, step {row['step']}, accuracy {100 * row[ACCURACY]:.2f} %"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Write what a trial came to: finished, stopped by the scheduler, or nothing."""
        number, last = trial.config["number"], trial.last_result
        if ENDED in last:
            self._lost(number, last[ENDED], last["why"])
            return
        begun, facts = self._begun(number), last["facts"]
        result = {
            "number": number,
            "point": begun["point"],
            "state": "finished" if last["complete"] else "stopped",
            ACCURACY: last[ACCURACY],
            "curve": self.curves[number],
            "wait": round(facts["started"] - begun["asked"], 2),
            "run_id": begun["run_id"],
            **{name: value for name, value in facts.items() if name != "started"},
        }
        self.book.end(result)
        self.tracked.end(result)
        counters.trial(self.book.space.name, result["state"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial is taken up again: whoever runs it reports everything once more."""
        number = trial.config["number"]
        self.say(f"trial {number + 1}/{self.samples} broke off and goes on from its folder")
        self.book.note(number, {"asked": time.time()})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note that a trial failed by what is nobody's mistake but the program's."""
        self._lost(trial.config["number"], "failed", "an error whose traceback stands above")

    def _lost(self, number: int, state: str, why: str) -> None:
        self.say(f"trial {number + 1}/{self.samples} {state}: {why}")
        self.tracked.abandon(number, state, why)
        counters.trial(self.book.space.name, state)
        begun = self._begun(number)
        if state == "failed":
            self.failed[number] = why
        else:
            named = {name: begun[name] for name in ("number", "point", "run_id")}
            self.book.end({**named, "state": state, "why": why, "curve": []})

    def _begun(self, number: int) -> dict[str, Any]:
        begun = self.book.begun(number)
        assert begun is not None
        return begun


def trial_name(point: dict[str, Any]) -> str:
    """Return a point as words."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in point.items())


def finish(store: Store, summary: dict[str, Any], results: dict[int, dict[str, Any]]) -> None:
    """Write the recipes of the best trial, which jobs run as they are."""
    if summary["best"] is None:
        return
    number = summary["best"]
    trial = Trial.of(json.loads(store.read(f"{trial_folder(number)}/trial.json")))
    for name, (recipe, url) in trial.pools.items():
        text = f"# The pool {name} of trial {number}: jobs/generate.py FILE --out {url}\n"
        store.write(f"{BEST}/{name}.yaml", (text + _yaml(recipe)).encode())
    accuracy = results[number][ACCURACY]
    head = (
        f"# Trial {number} of the sweep {summary['space']['name']}, accuracy {100 * accuracy:.2f} %"
        f" over {len(summary['space']['seeds'])} seeds.\n"
        "# jobs/compose.py FILE --out FOLDER; the files beside it make its pools.\n"
    )
    store.write(f"{BEST}/compose.yaml", (head + _yaml(trial.compose)).encode())


def _yaml(recipe: Any) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True) | {
        "kind": recipe.kind}, sort_keys=False)  # fmt: skip


def _json(values: Any) -> bytes:
    return json.dumps(values, indent=1).encode()
