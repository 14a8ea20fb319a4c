"""Counters of the factory's work among Ray's own metrics, for Prometheus to scrape.

Each node of a cluster serves them on its metrics port as `ray_NAME`, with the names below; the
dashboard in docs/grafana.json shows them. Only drivers count, when a shard is committed. A shard
therefore counts once, even if it was interrupted or made twice before.
"""

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "factory_images_total": ("Images committed.", ("recipe", "system")),
    "factory_rejects_total": ("Images rejected, by reason.", ("recipe", "system", "reason")),
    "factory_stage_seconds_total": (
        "Seconds that actors spent on committed shards, by stage.",
        ("recipe", "system", "stage"),
    ),
    "factory_shards_total": ("Shards committed.", ("recipe", "system")),
    "factory_trials_total": ("Trials of a search that ended, by how.", ("search", "outcome")),
}


@cache
def _counter(name: str) -> Counter:
    text, tags = COUNTERS[name]
    return Counter(name, description=text, tag_keys=tags)


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


def trial(search: str, outcome: str) -> None:
    """Count a trial that ended.

    Args:
        search: the search space's name.
        outcome: `finished`, `stopped` (by the scheduler), `refused` (by the pools) or `failed`.
    """
    _add("factory_trials_total", 1, search=search, outcome=outcome)
