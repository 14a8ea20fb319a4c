"""Verification by group: which group has more errors, and by how much.

Groups come from the user's file; nothing here guesses a person's group. All groups are judged at
the thresholds of the whole benchmark, as a system in use would judge them. The result of each group
with its own thresholds is stated as well.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from factory.evaluation.scores import RESOLVED, rates, resolved
from factory.evaluation.verification import FAR, FOLDS, Distances, Verification
from factory.recipe import InputError

DEFINITIONS = {
    "group": "of a pair; where its images are of two groups, both names with ' x ' between",
    "accuracy": "share of the group's pairs judged rightly at the folds' thresholds of all pairs",
    "accuracy_error": "binomial standard error at two more right and two more wrong pairs "
    "(Agresti and Coull), so that it is never 0",
    "fmr, fnmr": "share of its impostor and genuine pairs judged wrongly at the same thresholds",
    "tar": "share of its genuine pairs accepted at the folds' thresholds of FAR 1e-3, all pairs; "
    "a fold has none if no other fold has impostor pairs",
    "far": "share of its impostor pairs accepted there; None below 10 / 1e-3 impostor pairs",
    "own": "the whole protocol on the group's pairs alone, in their order, thresholds its own",
    "spread": "population standard deviation of the groups' accuracies",
    "gap": "accuracy of the best group less that of the worst; resolved where both have "
    f"{RESOLVED} pairs or more and it exceeds the standard error of the difference, by the "
    "accuracy_error of both",
}
ACCEPTED = (
    "a .csv with the columns benchmark, pair (or image), group, or a .json of "
    '{benchmark: {"pairs": [group, ...]}} or {benchmark: {"images": [...]}}'
)


@dataclass(frozen=True)
class GroupResult:
    """A recognizer's result on the pairs of one group; `DEFINITIONS` defines each figure.

    Rates are in [0, 1], or None if the group has no pair of the kind.
    """

    pairs: int
    genuine: int
    impostors: int
    accuracy: float
    accuracy_error: float
    fnmr: float | None
    fmr: float | None
    tar: float | None
    far: float | None
    eer: float | None
    auc: float | None
    own: dict[str, Any] | None


@dataclass(frozen=True)
class Fairness:
    """The results of all groups on one benchmark, and how far apart they are."""

    groups: dict[str, GroupResult]
    spread: float
    best: str
    worst: str
    gap: float
    gap_resolved: bool
    ungrouped: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a JSON-able mapping with its definitions."""
        return {**asdict(self), "definitions": DEFINITIONS}


def read_groups(path: str | Path) -> dict[str, list[str]]:
    """Read the group of every pair by benchmark; "" for a pair without a group.

    In a .csv, pairs or images are numbered from 0 in the order of the benchmark's file.

    Raises:
        InputError: there is no such file, or it has another form.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--groups {path}: no such file; accepted is {ACCEPTED}")
    try:
        if path.suffix == ".json":
            return _from_json(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return _from_csv(list(csv.DictReader(file)))
    except (csv.Error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"--groups {path}: {said}; accepted is {ACCEPTED}") from None
    raise InputError(f"--groups {path}: accepted is {ACCEPTED}")


def by_group(found: Distances, groups: Sequence[str]) -> Fairness:
    """Return every verification figure by group.

    Args:
        found: the pairs' distances, issame and folds' thresholds.
        groups: the group of each pair; "" leaves a pair out.

    Raises:
        InputError: the numbers of groups and pairs differ, or there is no group at all.
    """
    if len(groups) != len(found.same):
        raise InputError(
            f"groups of benchmark {found.name}: {len(groups)} for {len(found.same)} pairs; "
            "accepted is one for each pair, or one for each of its images"
        )
    of = np.array(groups, dtype=object)
    names = sorted({group for group in groups if group})
    if not names:
        raise InputError(f"groups of benchmark {found.name}: none; accepted is one or more")
    results = {name: _one(found, np.flatnonzero(of == name)) for name in names}
    ranked = sorted(names, key=lambda name: (results[name].accuracy, name))
    worst, best = results[ranked[0]], results[ranked[-1]]
    gap = best.accuracy - worst.accuracy
    error = float(np.hypot(best.accuracy_error, worst.accuracy_error))
    return Fairness(
        groups=results,
        spread=float(np.std([result.accuracy for result in results.values()])),
        best=ranked[-1],
        worst=ranked[0],
        gap=gap,
        gap_resolved=gap > error and min(best.pairs, worst.pairs) >= RESOLVED,
        ungrouped=int((of == "").sum()),
    )


def _one(found: Distances, rows: np.ndarray) -> GroupResult:
    distances, same = found.distances[rows], found.same[rows]
    genuine, impostors = distances[same], distances[~same]
    accepted = distances < found.thresholds[rows]
    at_far, known = distances < found.far_thresholds[rows], ~np.isnan(found.far_thresholds[rows])
    both = len(genuine) > 0 and len(impostors) > 0
    overall = rates(-genuine, -impostors) if both else None
    accuracy = float(np.mean(accepted == same))
    own = None
    if both and len(rows) >= FOLDS:
        own = asdict(Verification.of(Distances.of(found.name, distances, same, found.xnorm)))
    return GroupResult(
        pairs=len(rows),
        genuine=len(genuine),
        impostors=len(impostors),
        accuracy=accuracy,
        accuracy_error=_error(int((accepted == same).sum()), len(rows)),
        fnmr=_share(~accepted[same]),
        fmr=_share(accepted[~same]),
        tar=_share(at_far[same & known]),
        far=_share(at_far[~same & known]) if resolved(FAR, len(impostors)) else None,
        eer=None if overall is None else overall.eer,
        auc=None if overall is None else overall.auc,
        own=own,
    )


def _share(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _error(right: int, pairs: int) -> float:
    """Return the standard error of a share that is not 0 where all or none are right."""
    share = (right + 2) / (pairs + 4)
    return float(np.sqrt(share * (1 - share) / (pairs + 4)))


def _from_json(content: Mapping[str, Any]) -> dict[str, list[str]]:
    found = {}
    for benchmark, given in content.items():
        ((kind, groups),) = given.items()
        if kind not in ("pairs", "images") or not all(isinstance(group, str) for group in groups):
            raise ValueError(f"benchmark {benchmark} gives {kind}")
        found[benchmark] = _of_pairs(benchmark, groups) if kind == "images" else list(groups)
    return found


def _from_csv(rows: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    if not rows:
        raise ValueError("no row")
    kind = "pair" if "pair" in rows[0] else "image"
    known: dict[str, dict[int, str]] = {}
    for row in rows:
        of = known.setdefault(row["benchmark"], {})
        if of.setdefault(int(row[kind]), row["group"]) != row["group"]:
            raise ValueError(f"{row['benchmark']} {kind} {row[kind]} has two groups")
    found = {}
    for benchmark, of in known.items():
        if sorted(of) != list(range(len(of))):
            raise ValueError(f"{benchmark}: {kind} numbers are not 0 to {len(of) - 1}")
        groups = [of[number] for number in range(len(of))]
        found[benchmark] = _of_pairs(benchmark, groups) if kind == "image" else groups
    return found


def _of_pairs(benchmark: str, images: Sequence[str]) -> list[str]:
    if len(images) % 2:
        raise ValueError(f"{benchmark}: {len(images)} images are not two a pair")
    return [_joined(*pair) for pair in zip(images[0::2], images[1::2], strict=True)]


def _joined(first: str, second: str) -> str:
    if not (first and second):
        return ""
    return first if first == second else " x ".join(sorted((first, second)))
