"""The book of a sweep: the claim and the results of trials in the sweep's folder."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from factory.cluster.precision import settled
from factory.datasets.claim import Claim, differences
from factory.datasets.manifest import MANIFEST, load_manifest
from factory.datasets.store import Store, parted
from factory.recipe import AUTO, InputError, stated_precision, with_options
from factory.search.results import SWEEP, best, facts, front, generation, overhead, startup
from factory.search.space import Space, Trial
from factory.search.trial import trial_folder

SEARCH = Claim(SWEEP, "the search")


class Book:
    """Reads and writes the claim, the trials and the results in the folder of a sweep."""

    def __init__(self, store: Store, space: Space) -> None:
        """Read the claim; InputError if it is that of another space."""
        self.store, self.space = store, space
        self.held: dict[str, Any] = SEARCH.read(store) or {}
        if self.held:
            differing = SEARCH.differing(self.held.get("space", {}), space.described())
            if differing:
                raise SEARCH.another(store, differing)

    @property
    def run_id(self) -> str:
        """Return the id of the sweep's MLflow run; "" if it has none yet."""
        return self.held.get("run_id", "")

    def precision(self, samples: int, say: Callable[[str], None]) -> dict[str, str]:
        """Return the precision that `auto` stands for in the trials' recipes.

        It is the claim's if there is one, else that of the cluster's nodes.

        Args:
            samples: number of trials in all.
            say: receives a line.

        Raises:
            InputError: the nodes that can do the work differ.
        """
        if "precision" in self.held or "runs" in self.held:
            # A sweep from before `auto` existed used the default of that time.
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

    def claim(self, run_id: str, samples: int, benchmarks: Mapping[str, str]) -> None:
        """Write the claim: the space, the MLflow run, the number of trials and the benchmarks.

        Args:
            run_id: id of the sweep's run in MLflow.
            samples: number of trials in all.
            benchmarks: sha256 of the benchmarks' files, by name; empty if no trial is left to do.

        Raises:
            InputError: trials were verified on other benchmarks.
        """
        before = self.held.get("benchmarks") or benchmarks
        for field, was, now in differences(before, benchmarks or before):
            raise InputError(
                f"benchmarks {self.space.benchmarks}: {field} has sha256 {now}, and trials of "
                f"{self.store.url} were verified on {was}; accepted are the files as they were, or "
                "another --out"
            )
        now = {"space": self.space.described(), "run_id": run_id, "samples": samples, "failed": []}
        now["precision"], now["benchmarks"] = dict(self.space.precision), dict(before)
        self.held = {"runs": [], **self.held, **now}
        self.store.write(SWEEP, as_json(self.held))
        self.store.write("space.py", self.space.source.encode())

    def check(self, pools: str) -> None:
        """Raise InputError if a trial that has begun would now be a different one.

        The space's fields alone cannot show this, because the space's function, its recipes' files
        and the datasets that it takes as they are may have changed.
        """
        for begun in self._each("trial.json"):
            number, point = begun["number"], begun["point"]
            old, new = Trial.of(begun), self.space.trial(number, point, pools)
            was = decides(old) | {"point": point}
            now = decides(new) | {"point": self._drawn(number, point)}
            held, there = begun.get("datasets", {}), datasets(new)
            was["datasets"] = {name: held[name] for name in there if name in held}
            now["datasets"] = {name: there[name] for name in there if name in held}
            for field, before, after in differences(was, now):
                raise InputError(
                    f"--out {self.store.url}: trial {number} has begun with {field} {before!r}, "
                    f"which the space, its recipes and datasets now say is {after!r}; accepted are "
                    "the files as they were, or another folder"
                )

    def _drawn(self, number: int, point: dict[str, Any]) -> Any:
        """Return the point that a trial would have now; `point` where results decided it."""
        if self.space.search == "tpe":
            return point
        if self.space.search == "grid" and number >= len(self.space.grid):
            return None
        return json.loads(json.dumps(self.space.draw(number)))

    def _each(self, file: str) -> Iterator[dict[str, Any]]:
        for name in self.store.list("trials"):
            if name.endswith(f"/{file}") and name.count("/") == 2:
                yield facts(self.store, name, "number")

    def results(self) -> dict[int, dict[str, Any]]:
        """Return the results of all trials that have ended, by number."""
        found = self._each("result.json")
        return {result["number"]: result for result in sorted(found, key=lambda r: r["number"])}

    def points(self) -> list[dict[str, Any]]:
        """Return the point of each trial that has begun."""
        return [begun["point"] for begun in self._each("trial.json")]

    def begun(self, number: int) -> dict[str, Any] | None:
        """Return the facts that were written before a trial began; None if it never began."""
        name = f"{trial_folder(number)}/trial.json"
        return facts(self.store, name, "number") if self.store.exists(name) else None

    def begin(self, trial: Trial) -> None:
        """Write a trial's description before it begins."""
        self.note(trial.number, trial.as_dict() | {"datasets": datasets(trial)})

    def note(self, number: int, values: dict[str, Any]) -> None:
        """Write or extend a trial's facts before it ends."""
        whole = {**(self.begun(number) or {}), **values}
        self.store.write(f"{trial_folder(number)}/trial.json", as_json(whole))

    def end(self, result: dict[str, Any]) -> None:
        """Write a trial's result."""
        self.store.write(f"{trial_folder(result['number'])}/result.json", as_json(result))

    def summary(
        self,
        space: Space,
        results: dict[int, dict[str, Any]],
        seconds: float,
        ran: set[int],
        concurrent: int,
        failed: dict[int, str],
    ) -> dict[str, Any]:
        """Write and return the summary of the sweep.

        Args:
            space: the space of the sweep.
            results: results of all trials that have ended, by number.
            seconds: wall time of this run.
            ran: the trials that this run had to do.
            concurrent: number of trials that it ran at a time.
            failed: the reasons of failed trials, by number.
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
        self.store.write(SWEEP, as_json(self.held))
        return self.held


def datasets(trial: Trial) -> dict[str, Any]:
    """Return what the datasets hold that a trial takes as they are, by the name of its pool.

    A dataset that is gone is left out.
    """
    made, found = {url for _, url in trial.pools.values()}, {}
    for name, view in trial.compose.pools.items():
        if view.url not in made and Store(view.url).exists(MANIFEST):
            manifest = load_manifest(Store(view.url))
            found[name] = {
                "content_digest": manifest.content_digest,
                "images": manifest.totals.kept,
            }
    return found


def decides(trial: Trial) -> Any:
    """Return the fields of a trial that change its results, without addresses and reservations.

    The name of a pool's folder contains the digest of its content, library versions included.
    """
    whole = trial.as_dict()
    for name, pool in whole["pools"].items():
        pool["recipe"] = _without(pool["recipe"], "pool", "workers", "cost")
        del whole["compose"]["pools"][name]["url"]
    precision = trial.fr.engine.precision
    fr = _without(whole["fr"], "engine", "checkpoint", "data", "seed")
    whole["fr"] = fr | {"engine.precision": precision}
    return placeless(json.loads(json.dumps(whole)))


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def placeless(values: Any) -> Any:
    """Keep only the last part of each address, which a moved folder keeps, and its options."""
    if not isinstance(values, dict):
        return values
    return {
        name: _last(value) if name in ("url", "location", "benchmarks") else placeless(value)
        for name, value in values.items()
    }


def _last(address: str) -> str:
    file, options = with_options(address)
    name = parted(file)[0].rpartition("/")[2]
    return f"{name}?{urlencode(options)}" if options else name


def as_json(values: Any) -> bytes:
    """Return values as the bytes of a JSON file."""
    return json.dumps(values, indent=1).encode()
