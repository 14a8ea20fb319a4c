"""Statistics over the results of trials: the best one, the front, the overhead."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from factory.datasets.store import Store
from factory.recipe import InputError
from factory.search.space import OBJECTIVES

SWEEP, BEST = "sweep.json", "best"

Result = Mapping[str, Any]


def is_sweep(store: Store) -> bool:
    """Tell whether a folder holds a sweep."""
    return store.exists(SWEEP)


def load(store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a sweep's summary, and the results of its trials in their order.

    Raises:
        InputError: a file is damaged, or is not of a sweep.
    """
    names = (name for name in store.list("trials") if name.endswith("/result.json"))
    sweep, results = facts(store, SWEEP, "space"), [facts(store, n, "number") for n in names]
    return sweep, sorted(results, key=lambda result: result["number"])


def facts(store: Store, name: str, key: str) -> dict[str, Any]:
    """Return the content of one of a sweep's JSON files.

    Args:
        store: the sweep's folder.
        name: the file's name in it.
        key: what the file has to state.

    Raises:
        InputError: the file is damaged, or states no such thing.
    """
    try:
        found = json.loads(store.read(name))
    except ValueError as error:
        raise InputError(f"{store.url}/{name}: damaged ({error})") from None
    if not isinstance(found, dict) or key not in found:
        raise InputError(f"{store.url}/{name}: it states no {key}, so it is not a sweep's")
    return found


def losses(result: Result, objectives: Sequence[str]) -> tuple[float, ...]:
    """Return the objectives of a trial, each with the sign for which less is better."""
    signs = (-1 if OBJECTIVES[name] == "max" else 1 for name in objectives)
    return tuple(sign * result[name] for sign, name in zip(signs, objectives, strict=True))


def front(results: Sequence[Result], objectives: Sequence[str]) -> list[int]:
    """Return the numbers of the trials on the Pareto front, which no other trial beats.

    A trial beats another if it is better in an objective and worse in none.
    """
    costs = [losses(result, objectives) for result in results]

    def beaten(one: tuple[float, ...]) -> bool:
        return any(
            other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in costs
        )

    return [r["number"] for r, cost in zip(results, costs, strict=True) if not beaten(cost)]


def best(results: Sequence[Result], objectives: Sequence[str]) -> int | None:
    """Return the number of the best trial by the first objective; further ones decide ties."""
    if not results:
        return None
    return min(results, key=lambda r: (losses(r, objectives), r["number"]))["number"]


def chance(accuracies: Sequence[Sequence[float]]) -> float | None:
    """Return the probability of such differences between means if all points were alike.

    Args:
        accuracies: for each trial its accuracies, one for each seed.

    Returns:
        The p-value of a one-way analysis of variance over seeds; None with fewer than two trials
        of two seeds, or without any spread.
    """
    from scipy.stats import f_oneway

    groups = [values for values in accuracies if len(values) > 1]
    if len(groups) < 2 or all(len(set(values)) == 1 for values in groups):
        return None
    return float(f_oneway(*groups).pvalue)


def trend(places: Sequence[float], means: Sequence[float]) -> tuple[float, float] | None:
    """Return whether accuracy rises or falls along an axis.

    Each trial counts once, with its mean. The test therefore includes the variation by the draw of
    its images, which an analysis of variance over seeds leaves out.

    Args:
        places: the place of each trial on the axis.
        means: the accuracy of each trial.

    Returns:
        Kendall's tau in [-1, 1] and its p-value (exact without ties). None with fewer than five
        trials, for which no order is rare enough, or if all places or all means are equal.
    """
    from scipy.stats import kendalltau

    if len(places) < 5 or len(set(places)) == 1 or len(set(means)) == 1:
        return None
    found: Any = kendalltau(places, means)
    return float(found.statistic), float(found.pvalue)


def overhead(runs: Sequence[Mapping[str, float]]) -> float | None:
    """Return the sweep's wall time, times the trials at a time, over its trials' own time.

    It is 1 without overhead: then a sweep with n trials at a time takes an n-th of their time. The
    sums count if a sweep was resumed. It is None if no trial has ended.
    """
    spent = sum(run["seconds"] * run["concurrent"] for run in runs)
    own = sum(run["trial_seconds"] for run in runs)
    return round(spent / own, 3) if own else None


def startup(results: Sequence[Result]) -> float | None:
    """Return the median of the seconds that a trial waited for its actor and for workers."""
    return (
        round(median(r["wait"] + r["seconds"]["startup"] for r in results), 2) if results else None
    )


def generation(results: Sequence[Result]) -> dict[str, float]:
    """Return the cost of pools in seconds of actors' work: of made pools, and of found ones."""
    found = {"made_seconds": 0.0, "saved_seconds": 0.0}
    for pool in (pool for result in results for pool in result["pools"].values()):
        found["made_seconds" if pool["made"] else "saved_seconds"] += pool["actor_seconds"]
    return {name: round(seconds, 2) for name, seconds in found.items()}
