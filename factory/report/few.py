"""Too few pairs: what a figure is worth then, and what stands in place of a chart."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from markupsafe import Markup, escape

from factory.evaluation.scores import RESOLVED

LEVEL = 0.95
EXACT = 100  # a rate from fewer pairs stands beside its confidence interval
CHARTED = 30  # values: a share of a chart of fewer has a standard error above 0.5 / sqrt(30), 9 %


def wilson(share: float, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's interval of a binomial share (Wilson 1927), both ends in [0, 1].

    Args:
        share: the share that was seen, in [0, 1]; `share * count` need not be whole.
        count: of how many, 1 or more; they are taken to be independent.
        level: how often such intervals hold the true share.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    weight = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / weight
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / weight
    return max(middle - half, 0.0), min(middle + half, 1.0)


def pairs_of(found: Mapping[str, Any]) -> tuple[int, int]:
    """Return the genuine and impostor pairs of a measure of quality, as its histograms count."""
    histograms = found.get("histograms", {})
    genuine, impostor = (
        int(found.get(f"{kind}_pairs") or sum(histograms.get(kind, ())))
        for kind in ("genuine", "impostor")
    )
    return genuine, impostor


def error_interval(found: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the interval of a measure's EER; None where `EXACT` pairs of either kind bear it.

    The scarcer kind of pairs decides. Pairs of one image are not independent, so that the true
    interval is rather wider.
    """
    scarcer = min(pairs_of(found))
    if not 0 < scarcer < EXACT:
        return None
    return wilson(min(max(float(found["eer"]), 0.0), 1.0), scarcer)


def group_interval(found: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the interval of a group's EER, as `error_interval` does for a dataset."""
    counts = {"genuine_pairs": found["genuine"], "impostor_pairs": found["impostors"]}
    return error_interval({**counts, "eer": found["eer"]})


def lacking(counts: Mapping[str, int], needed: int = CHARTED) -> str:
    """Say which counts are too small for a chart, and how many it takes; "" where none is."""
    short = [f"{count:,} {what}" for what, count in counts.items() if count < needed]
    if not short:
        return ""
    return f"There are only {' and '.join(short)}. This chart needs {needed} or more."


def curve_lacking(curve: Mapping[str, Sequence[float]], genuine: int, impostor: int) -> str:
    """Say why so many pairs do not resolve a DET curve; "" where they resolve some of it.

    A rate below `RESOLVED` / pairs rests on too few pairs (`factory.evaluation.scores`).
    """
    if not curve["fmr"]:
        return (
            f"There are only {impostor:,} impostor pairs. An FMR of 10 % takes {RESOLVED * 10} "
            "or more."
        )
    highest = max(curve["fnmr"])
    refused = round(highest * genuine)
    if refused >= RESOLVED:
        return ""
    have = (
        f"The {genuine:,} genuine pairs resolve no FNMR below "
        f"{100 * min(RESOLVED / max(genuine, 1), 1):.3g} %"
    )
    if not refused:
        return (
            f"{have}, and no pair is refused at any FMR that {impostor:,} impostor pairs "
            f"resolve. An FNMR of 1 % takes {RESOLVED * 100:,} genuine pairs."
        )
    return (
        f"{have}. The highest FNMR here is {100 * highest:.3g} %. To resolve that takes "
        f"{math.ceil(RESOLVED * genuine / refused):,} genuine pairs or more."
    )


def unresolved(why: str) -> Markup:
    """Return what stands in place of a chart."""
    return Markup('<p class="unresolved"><strong>unresolved</strong> {}</p>').format(escape(why))
