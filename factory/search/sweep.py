"""The sweep: Ray Tune runs a space's trials, and the folder keeps their results.

OUT/sweep.json             the claim, which names the space; at the end also the summary
OUT/trials/NNNN/trial.json    a trial's point and recipes, written before it starts
OUT/trials/NNNN/result.json   its result, written when it ends; a trial without one is run again
OUT/trials/NNNN/composition/, fr/seedS/   its composition and its recognizers
OUT/best/                  the recipes of the best trial

A resumed sweep needs nothing from Tune: trials are numbered, the next points follow from the
results in the folder, and a trial that had begun finds its own checkpoints.
"""

import functools
import json
import os
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
from factory.datasets.provenance import sha256_file
from factory.datasets.store import Store, below
from factory.evaluation.benchmarks import MANIFEST as STATED
from factory.evaluation.benchmarks import SHIPPED, benchmark_folder
from factory.evaluation.verification import bin_files, read_bin
from factory.generation.run import check_sources, preflight
from factory.recipe import FaultError, InputError, keyless, local_path, public
from factory.recognition.faces import load_faces
from factory.recognition.images import decode, fitted
from factory.recognition.recognizers import checked_recognizer
from factory.search.book import Book
from factory.search.following import Following, Say
from factory.search.pools import Pools
from factory.search.results import BEST
from factory.search.space import Space, Trial
from factory.search.suggestions import LOST, Suggestions, scheduler
from factory.search.tracked import Tracked
from factory.search.trial import ACCURACY, Judged, Objective, trial_folder
from factory.training import recognition

RAY = "ray"  # Tune's own files, below the output while it runs
# A trial only waits for work that reserves its own resources; Tune requires at least one byte.
RESERVED: Any = {"cpu": 0, "memory": 1}
# A retry only makes a pool's missing shards, so a lost node costs the shards that it was making.
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
    """Run a space's trials on the connected Ray cluster, except those that have ended before.

    Args:
        space: the space of trials.
        out: folder or URL of the sweep, reachable by all workers.
        samples: number of trials in all; a finished sweep grows with a higher number.
        pools: folder or URL above all pools, which sweeps share.
        concurrent: number of trials at a time; 0 for as many as the cluster holds.
        tracking_uri: MLflow's tracking URI.
        say: receives one line of progress at a time.

    Returns:
        The content of `sweep.json`.

    Raises:
        InputError: there is a mistake in the space, in one of its recipes or in `out`.
        FaultError: trials failed, or none finished. Results are kept, and the same command tries
            failed trials again.
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
    benchmarks = check_inputs(space, [trial for trial in ahead if trial.number not in done])
    most = fitting(ahead)
    if not 0 <= concurrent <= most:
        raise InputError(
            f"--concurrent {concurrent}: accepted are 1 to {most}, or 0 for {most}, "
            "by what a trial's work reserves and the cluster has"
        )
    concurrent = concurrent or most
    with store.lock("sweep"), Tracked(tracking_uri, space, store, book.run_id, say) as tracked:
        book.claim(tracked.run.id, samples, benchmarks)
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
            with stops.keeping(
                lambda: f"{len(book.results())} of {samples} trials are done", store.sweep
            ):
                run(objective, Suggestions(space, book, list(todo), pools), following, concurrent)
        results = book.results()
        spent = round(time.time() - started, 2)
        at_once = min(concurrent, len(todo))
        summary = book.summary(space, results, spent, set(todo), at_once, following.failed)
        finish(store, summary, results)
        tracked.finish(summary)
        check_ended(results, following.failed, samples)
    return summary


def check_inputs(space: Space, trials: list[Trial]) -> dict[str, str]:
    """Raise InputError now if something is missing that trials would only need after hours.

    This checks benchmarks, known faces, recognizers, datasets, and the sources of missing pools.

    Returns:
        The sha256 of the benchmarks' files, by name; none if no trial is left to do.
    """
    if not trials:
        return {}
    benchmarks = check_benchmarks(space.benchmarks, trials[0].fr.image.size)
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
    return benchmarks


def check_benchmarks(location: str, size: int) -> dict[str, str]:
    """Return the sha256 of the benchmarks' files by name, of which a recognizer can be verified.

    The shipped ones count as shipped where they were rendered again.

    Args:
        location: folder of .bin files.
        size: height and width in pixels of the images that the recognizers take.

    Raises:
        InputError: there is no benchmark, one is damaged, or its images have another size.
    """
    files = bin_files(benchmark_folder(location))
    for name, file in files.items():
        what = f"benchmark {name} image 0"
        fitted(decode(read_bin(file).images[0], what), size, what, resize=False)
    if location == SHIPPED:
        return json.loads((local_path(location) / STATED).read_text())["sha256"]
    return {file.name: sha256_file(file) for file in files.values()}


def check_ended(results: dict[int, dict[str, Any]], failed: dict[int, str], samples: int) -> None:
    """Raise FaultError if trials failed, or if none finished."""
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
    """Return how many trials the connected cluster holds at a time, from what trainings reserve.

    Raises:
        InputError: the cluster is too small for the work of one trial.
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
    """Let Tune run trials until all suggested ones have ended."""
    store, book = suggestions.book.store, suggestions.book
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # failed trials report no accuracy
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the sweep prints its own progress
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the sweep, not only its trials
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
    except tune.TuneError:  # Tune makes a text of what a callback raises
        if following.error is None:
            raise
        raise following.error from None
    finally:
        ray.kill(objective.pools)
        store.clear(RAY)


def _call(objective: Objective, config: dict[str, Any]) -> None:
    objective(config)


def finish(store: Store, summary: dict[str, Any], results: dict[int, dict[str, Any]]) -> None:
    """Write the recipes of the best trial, which commands can run unchanged."""
    if summary["best"] is None:
        return
    store.clear(BEST)  # an earlier best trial may have had other pools
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
