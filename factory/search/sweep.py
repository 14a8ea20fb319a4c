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
from dataclasses import replace
from typing import Any

import ray
import yaml
from ray import tune

from factory import stops
from factory.cluster.capacity import cpus, gpus, require, trainers
from factory.cluster.workers import runtime_env
from factory.datasets.manifest import MANIFEST
from factory.datasets.store import Store, below
from factory.evaluation.benchmarks import benchmark_folder
from factory.evaluation.verification import bin_files
from factory.generation.run import check_sources, preflight
from factory.recipe import FaultError, InputError, keyless, public
from factory.recognition.faces import load_faces
from factory.search.book import Book
from factory.search.following import Following, Say
from factory.search.leakage import checked_recognizer
from factory.search.pools import Pools
from factory.search.results import BEST
from factory.search.space import Space, Trial
from factory.search.suggestions import LOST, Suggestions, scheduler
from factory.search.tracked import Tracked
from factory.search.trial import ACCURACY, Judged, Objective, trial_folder
from factory.training import recognition

RAY = "ray"  # Tune's own notes, below the output while it runs
# A trial only waits for what it started, which reserves for itself; Tune wants something, a byte.
RESERVED: Any = {"cpu": 0, "memory": 1}
# Making a pool again only makes what is missing: a lost node costs the shards it had in work.
POOLS: Any = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}


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
    bin_files(benchmark_folder(space.benchmarks))
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
