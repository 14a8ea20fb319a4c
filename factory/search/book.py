"""The book of a sweep: what its folder says of it, and what came of each trial."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

from factory.cluster.precision import settled
from factory.datasets.claim import Claim, differences
from factory.datasets.store import Store, parted
from factory.recipe import AUTO, InputError, stated_precision, with_options
from factory.search.results import SWEEP, best, front, generation, overhead, startup
from factory.search.space import Space, Trial
from factory.search.trial import trial_folder

SEARCH = Claim(SWEEP, "the search")


class Book:
    """What the folder of a sweep says of its trials."""

    def __init__(self, store: Store, space: Space) -> None:
        """Read the claim; InputError when it is another space's."""
        self.store, self.space = store, space
        self.held: dict[str, Any] = SEARCH.read(store) or {}
        if self.held:
            differing = SEARCH.differing(self.held.get("space", {}), space.described())
            if differing:
                raise SEARCH.another(store, differing)

    @property
    def run_id(self) -> str:
        """Return the id of the sweep's MLflow run, "" when it has none yet."""
        return self.held.get("run_id", "")

    def precision(self, samples: int, say: Callable[[str], None]) -> dict[str, str]:
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
        self.store.write(SWEEP, as_json(self.held))
        self.store.write("space.py", self.space.source.encode())

    def check(self, pools: str) -> None:
        """Raise InputError when a trial that has begun would be another one now.

        The space's fields do not tell: its function and its recipes' files may have changed.
        """
        for begun in self._each("trial.json"):
            number = begun["number"]
            old, new = Trial.of(begun), self.space.trial(number, begun["point"], pools)
            for field, was, now in differences(decides(old), decides(new)):
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
        self.store.write(f"{trial_folder(number)}/trial.json", as_json(whole))

    def end(self, result: dict[str, Any]) -> None:
        """Write what a trial came to."""
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
        self.store.write(SWEEP, as_json(self.held))
        return self.held


def decides(trial: Trial) -> Any:
    """Return what results follow from: neither where things lie nor what work reserves.

    The name of a pool's folder has the digest of its content, library versions included.
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
    """Keep of each address its last part, which a copy of the folder has too, and its options."""
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
