"""Counters of the factory's work among Ray's own metrics, for Prometheus to scrape.

Each node of a cluster serves them on its metrics port as `ray_NAME`, with the names below; the
dashboard in docs/grafana.json shows them. Only drivers count, when a shard is committed. A shard
therefore counts once, even if it was interrupted or made twice before. What works now is a gauge,
and how long a commit takes is a histogram (`_bucket` after its name). Read its buckets: Ray makes
the sum beside them of the buckets' middles.
"""

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "factory_images_total": ("Images committed.", ("recipe", "system")),
    "factory_rejects_total": ("Images rejected, by reason.", ("recipe", "system", "reason")),
    "factory_stage_seconds_total": (
        "Seconds that actors spent on committed shards, by stage.",
        ("recipe", "system", "stage"),
    ),
    "factory_shards_total": ("Shards committed.", ("recipe", "system")),
    "factory_retries_total": (
        "Shards made again because a process ended at them.",
        ("recipe", "system"),
    ),
    "factory_store_repeats_total": (
        "Requests to the store that were repeated, by why.",
        ("recipe", "system", "why"),
    ),
    "factory_trials_total": ("Trials of a search that ended, by how.", ("search", "outcome")),
}


GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "factory_nodes": ("Nodes at work on shards.", ("recipe", "system")),
    "factory_actors": ("Actors at work on shards.", ("recipe", "system")),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "factory_commit_seconds": ("Seconds of one commit of a shard.", ("recipe", "system")),
}
COMMIT_SEC = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]  # upper ends of the histogram's buckets


@cache
def _counter(name: str) -> Counter:
    text, tags = COUNTERS[name]
    return Counter(name, description=text, tag_keys=tags)


@cache
def _gauge(name: str) -> Gauge:
    text, tags = GAUGES[name]
    return Gauge(name, description=text, tag_keys=tags)


@cache
def _histogram(name: str) -> Histogram:
    text, tags = HISTOGRAMS[name]
    return Histogram(name, description=text, boundaries=COMMIT_SEC, tag_keys=tags)


def _add(name: str, amount: float, **tags: str) -> None:
    if amount > 0:  # Ray refuses to add 0
        _counter(name).inc(amount, tags=tags)


def shard(
    recipe: str, system: str, kept: int, reasons: Mapping[str, int], seconds: Mapping[str, float]
) -> None:
    """Count a committed shard.

    Args:
        recipe: the recipe's name.
        system: what made the images.
        kept: how many images the shard has.
        reasons: how many images were rejected, by reason.
        seconds: how long the shard took, by stage.
    """
    of = {"recipe": recipe, "system": system}
    _add("factory_shards_total", 1, **of)
    _add("factory_images_total", kept, **of)
    for reason, count in reasons.items():
        _add("factory_rejects_total", count, **of, reason=reason)
    for stage, spent in seconds.items():
        _add("factory_stage_seconds_total", spent, **of, stage=stage)


def committed(recipe: str, system: str, seconds: float, repeats: Mapping[str, int]) -> None:
    """Count how a shard was committed.

    Args:
        recipe: the recipe's name.
        system: what made the images.
        seconds: how long the commit took.
        repeats: how many requests to the store were repeated, by why.
    """
    of = {"recipe": recipe, "system": system}
    _histogram("factory_commit_seconds").observe(seconds, tags=of)
    for why, count in repeats.items():
        _add("factory_store_repeats_total", count, **of, why=why)


def at_work(recipe: str, system: str, nodes: int, actors: int) -> None:
    """Set how many nodes and actors work on a recipe's shards now."""
    of = {"recipe": recipe, "system": system}
    _gauge("factory_nodes").set(nodes, tags=of)
    _gauge("factory_actors").set(actors, tags=of)


def again(recipe: str, system: str, count: int) -> None:
    """Count shards that are made again because a process ended at them."""
    _add("factory_retries_total", count, recipe=recipe, system=system)


def trial(search: str, outcome: str) -> None:
    """Count a trial that ended.

    Args:
        search: the search space's name.
        outcome: `finished`, `stopped` (by the scheduler), `refused` (by the pools) or `failed`.
    """
    _add("factory_trials_total", 1, search=search, outcome=outcome)
