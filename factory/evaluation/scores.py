"""Error rates of a matcher from genuine and impostor scores, and the choice of these scores.

A score is a cosine similarity: a higher one means more alike, and a pair is accepted if its score
is at least the threshold. FMR (or FAR, FPR) is the share of accepted impostor pairs, FNMR the share
of refused genuine pairs.
"""

from dataclasses import dataclass

import numpy as np

from factory.seeding import generator, seed64

RESOLVED = 10  # a rate below RESOLVED / pairs has too few pairs to be quoted
BINS = 100  # bins of a histogram over [-1, 1]
PAIRS = 2_000_000  # if there are more pairs, this many are drawn
PAIRS_AT_ONCE = 16_384
BLOCK_ROWS = 512

DEFINITIONS = {
    "eer": "FMR = FNMR, linear between the two thresholds around the crossing",
    "auc": "share of (genuine, impostor) pairs of scores in the right order, ties half",
    "fmr100": "lowest FNMR at FMR <= 1 %",
    "fmr1000": "lowest FNMR at FMR <= 0.1 %",
    "fdr": "(mean_g - mean_i)^2 / (var_g + var_i), population variances",
    "genuine": "cosine of a pair of different images inside an identity; all, or drawn as "
    "genuine_choice says",
    "impostor": "cosine of a pair of images of different identities; all, or drawn as "
    "impostor_choice says",
    "resolved": f"a rate is resolved from {RESOLVED} / impostor pairs upward",
}


@dataclass(frozen=True)
class Rates:
    """The rates of a set of scores; `DEFINITIONS` defines each.

    Attributes:
        eer: equal error rate, in [0, 1].
        auc: area under the ROC curve, in [0, 1].
        fmr100: FNMR in [0, 1]; None if 1 % FMR is not resolved.
        fmr1000: FNMR in [0, 1]; None if 0.1 % FMR is not resolved.
        fdr: Fisher discriminant ratio, 0 or more; None if neither kind of score varies.
        genuine_mean: mean genuine cosine.
        genuine_sd: its population standard deviation.
        impostor_mean: mean impostor cosine.
        impostor_sd: its population standard deviation.
        genuine_pairs: number of genuine pairs.
        impostor_pairs: number of impostor pairs.
    """

    eer: float
    auc: float
    fmr100: float | None
    fmr1000: float | None
    fdr: float | None
    genuine_mean: float
    genuine_sd: float
    impostor_mean: float
    impostor_sd: float
    genuine_pairs: int
    impostor_pairs: int


def rates(genuine: np.ndarray, impostor: np.ndarray) -> Rates:
    """Return the rates of genuine and impostor scores, each float [n], n of 1 or more.

    Raises:
        ValueError: a kind has no scores, or a score is not finite.
    """
    if not len(genuine) or not len(impostor):
        raise ValueError(
            f"{len(genuine)} genuine and {len(impostor)} impostor scores; accepted is 1 or more"
        )
    for kind, found in (("genuine", genuine), ("impostor", impostor)):
        broken = int((~np.isfinite(found)).sum())
        if broken:
            raise ValueError(f"{broken} of {len(found)} {kind} scores are not finite")
    fmr, fnmr = error_rates(genuine, impostor)
    variances = genuine.var() + impostor.var()
    return Rates(
        eer=_crossing(fmr, fnmr),
        auc=_auc(genuine, impostor),
        fmr100=_fnmr_at(fmr, fnmr, 0.01, len(impostor)),
        fmr1000=_fnmr_at(fmr, fnmr, 0.001, len(impostor)),
        fdr=float((genuine.mean() - impostor.mean()) ** 2 / variances) if variances else None,
        genuine_mean=float(genuine.mean()),
        genuine_sd=float(genuine.std()),
        impostor_mean=float(impostor.mean()),
        impostor_sd=float(impostor.std()),
        genuine_pairs=len(genuine),
        impostor_pairs=len(impostor),
    )


def error_rates(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return FMR and FNMR, float64 [t] each, at every distinct score and above the highest.

    Thresholds fall, so that FMR rises from 0 to 1 while FNMR falls from 1 to 0.
    """
    thresholds = np.unique(np.concatenate([genuine, impostor]))[::-1]
    accepted = _at_least(impostor, thresholds) / len(impostor)
    refused = 1.0 - _at_least(genuine, thresholds) / len(genuine)
    return np.concatenate([[0.0], accepted]), np.concatenate([[1.0], refused])


def resolved(rate: float, impostor_pairs: int) -> bool:
    """Tell whether there are enough impostor pairs to quote a rate this small."""
    return rate * impostor_pairs >= RESOLVED


def threshold_at(impostor: np.ndarray, rate: float) -> tuple[float, float]:
    """Return the lowest threshold whose FMR is at most `rate`, and the rate that was used.

    If there are too few impostor scores to resolve `rate`, the smallest resolved rate is used.

    Raises:
        ValueError: there are fewer than `RESOLVED` impostor scores.
    """
    if len(impostor) < RESOLVED:
        raise ValueError(f"{len(impostor)} impostor scores; accepted is {RESOLVED} or more")
    used = max(rate, RESOLVED / len(impostor))
    allowed = int(np.floor(used * len(impostor) + 1e-9))
    falling = np.sort(impostor)[::-1]
    if allowed >= len(impostor):
        return float(falling[-1]), used
    return float(np.nextafter(falling[allowed], np.inf)), used


def histogram(scores: np.ndarray) -> list[int]:
    """Count cosines in `BINS` equal bins over [-1, 1]."""
    counts, _ = np.histogram(np.clip(scores, -1.0, 1.0), bins=BINS, range=(-1.0, 1.0))
    return counts.tolist()


def genuine_scores(
    embeddings: np.ndarray, labels: np.ndarray, seed: int = 0, limit: int = PAIRS
) -> tuple[np.ndarray, str]:
    """Return cosines between different images of an identity, float64, and how they were chosen.

    Args:
        embeddings: unit rows, [N, D].
        labels: integers [N].
        seed: root seed of the sample.
        limit: if there are more pairs than this, this many are drawn, uniformly among the pairs and
            with replacement; else all are taken.
    """
    rows = rows_of(labels)
    each = np.array([len(row) * (len(row) - 1) // 2 for row in rows])
    ends = np.cumsum(each)
    pairs = int(ends[-1])
    if pairs <= limit:
        found = [np.empty(0)]
        for row in rows:
            unit = embeddings[row].astype(np.float64)
            found.append((unit @ unit.T)[np.triu_indices(len(row), 1)])
        return np.concatenate(found), f"all {pairs} pairs inside an identity"
    drawn = generator(seed64(seed, "genuine")).integers(pairs, size=limit)
    identity = np.searchsorted(ends, drawn, "right")
    number = drawn - (ends - each)[identity]  # pairs (0, 1), (0, 2), (1, 2), (0, 3), ...
    later = ((1.0 + np.sqrt(1.0 + 8.0 * number)) / 2.0).astype(np.int64)
    earlier = number - later * (later - 1) // 2
    starts = np.cumsum([0] + [len(row) for row in rows[:-1]])[identity]
    order = np.concatenate(rows)
    cosines = _cosines(embeddings, order[starts + earlier], order[starts + later])
    return cosines, f"{limit} of {pairs} pairs inside an identity, drawn with seed {seed}"


def impostor_scores(
    embeddings: np.ndarray, labels: np.ndarray, seed: int, limit: int = PAIRS
) -> tuple[np.ndarray, str]:
    """Return cosines between images of different identities, float64, and how they were chosen.

    Args:
        embeddings: unit rows, [N, D].
        labels: integers [N].
        seed: root seed of the sample.
        limit: if there are more pairs than this, this many are drawn: the first image uniformly,
            the second uniformly among images of other identities; else all are taken.
    """
    n = len(labels)
    sizes = np.unique(labels, return_counts=True)[1]
    pairs = (n * n - int((sizes.astype(np.int64) ** 2).sum())) // 2
    if pairs <= limit:
        found = [np.empty((2, 0), np.int64)]
        for start in range(0, n, BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, n))
            later = np.arange(start, n)
            wanted = (labels[rows, None] != labels[later]) & (rows[:, None] < later)
            found.append(np.stack(np.nonzero(wanted)) + start)
        cosines = _cosines(embeddings, *np.concatenate(found, axis=1))
        return cosines, f"all {pairs} pairs of different identities"
    draw = generator(seed64(seed, "impostors"))
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    first = draw.integers(n, size=limit)
    low = np.searchsorted(ranked, ranked[first], "left")
    own = np.searchsorted(ranked, ranked[first], "right") - low
    second = draw.integers(0, n - own)
    second = np.where(second >= low, second + own, second)  # skip the first image's identity
    cosines = _cosines(embeddings, order[first], order[second])
    return cosines, f"{limit} of {pairs} pairs of different identities, drawn with seed {seed}"


def _cosines(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    found = np.empty(len(first))
    for start in range(0, len(first), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        pair = (embeddings[rows[part]].astype(np.float64) for rows in (first, second))
        found[part] = np.einsum("ij,ij->i", *pair)
    return found


def rows_of(labels: np.ndarray) -> list[np.ndarray]:
    """Return the row indices of each identity, in the order of the labels."""
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    return np.split(order, starts[1:])


def _at_least(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, "left")


def _crossing(fmr: np.ndarray, fnmr: np.ndarray) -> float:
    after = int(np.argmax(fmr >= fnmr))
    gap_before, gap_after = fnmr[after - 1] - fmr[after - 1], fmr[after] - fnmr[after]
    share = gap_before / (gap_before + gap_after)
    return float(fmr[after - 1] + share * (fmr[after] - fmr[after - 1]))


def _auc(genuine: np.ndarray, impostor: np.ndarray) -> float:
    ranked = np.sort(impostor)
    below = np.searchsorted(ranked, genuine, "left")
    ties = np.searchsorted(ranked, genuine, "right") - below
    return float((below + ties / 2).sum() / (len(genuine) * len(impostor)))


def _fnmr_at(fmr: np.ndarray, fnmr: np.ndarray, rate: float, impostor_pairs: int) -> float | None:
    return float(fnmr[fmr <= rate].min()) if resolved(rate, impostor_pairs) else None
