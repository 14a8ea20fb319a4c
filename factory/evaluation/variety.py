"""Variety: how much of the real variation a dataset shows, by diversity, precision, recall and FID.

All figures use the features of one network, which is always stated, and need real images to compare
with. A set of points covers a place if one of the points is nearer to the place than to its own
k-th nearest neighbour (Kynkaanniemi et al. 2019, Eqs. 1 and 2; docs/papers.md 0.4 for diversity).
"""

from typing import Any

import numpy as np

from factory.evaluation.scores import rows_of
from factory.recipe import InputError
from factory.seeding import generator, seed64

K = 3
BLOCK = 1024
TIE = 1e-10  # distances that differ by less, relative to the mean squared length, count as equal

VARIETY_DEFINITIONS = {
    "diversity": "D_intra of DCFace: mean over classes of the share of real images of the same "
    "class that the generated images of the class cover; only where a label is one person in both",
    "diversity_unmatched": "the same with the real images of a class drawn at random (seeded) in "
    "place of the same class; never comparable with `diversity`",
    "k": "radius of a generated image: distance to its k-th nearest generated image (of its class "
    "for diversity, of the set for precision and recall); DCFace states none, 3 is the default",
    "precision": "share of generated images that the real images cover",
    "recall": "share of real images that the generated images cover",
    "fid": "Frechet distance between Gaussians fitted to the features of both sets; None unless "
    "both have more images than features have dimensions",
    "classes_left_out": "classes with k generated images or fewer: they have no radius",
}


def measure_variety(
    features: np.ndarray,
    labels: np.ndarray,
    real: np.ndarray,
    real_labels: np.ndarray,
    k: int = K,
    seed: int = 0,
    same_identities: bool = False,
) -> dict[str, Any]:
    """Return the figures of `VARIETY_DEFINITIONS` as a JSON-able mapping.

    Args:
        features: features of the dataset, float [N, D].
        labels: labels of the dataset, int [N].
        real: features of real images by the same network, float [M, D].
        real_labels: labels of the real images, int [M].
        k: the k-th nearest neighbour gives a radius; 1 or more.
        seed: root seed of the draw of real classes.
        same_identities: label i is the same person in both sets, so that `diversity` is defined.

    Raises:
        InputError: there are too few images for k, or no class of the dataset is among the real
            ones.
    """
    if k < 1 or min(len(features), len(real)) <= k:
        raise InputError(
            f"--k {k}: {len(features)} and {len(real)} images; accepted is 1 or more, and less "
            "than the images of each set"
        )
    matched = diversity(features, labels, real, real_labels, k) if same_identities else None
    drawn = diversity(features, labels, real, real_labels, k, seed)
    wide = min(len(features), len(real)) > features.shape[1]
    return {
        "images": len(features),
        "real_images": len(real),
        "dimensions": features.shape[1],
        "k": k,
        "seed": seed,
        "diversity": matched[0] if matched else None,
        "diversity_unmatched": drawn[0],
        "classes": drawn[1],
        "classes_left_out": len(np.unique(labels)) - drawn[1],
        "precision": float(covered(features, real, radii(real, k)).mean()),
        "recall": float(covered(real, features, radii(features, k)).mean()),
        "fid": frechet(features, real) if wide else None,
        "definitions": VARIETY_DEFINITIONS,
    }


def diversity(
    features: np.ndarray,
    labels: np.ndarray,
    real: np.ndarray,
    real_labels: np.ndarray,
    k: int = K,
    seed: int | None = None,
) -> tuple[float | None, int]:
    """Return D_intra, in [0, 1], and its number of classes (DCFace; docs/papers.md 0.4).

    It is None if no class has more than k generated images.

    Args:
        features: features of generated images, float [N, D].
        labels: their labels, int [N].
        real: features of real images, float [M, D].
        real_labels: their labels, int [M].
        k: the k-th nearest neighbour gives a radius.
        seed: None compares with the real images of the same class; else with those of a class that
            this root seed and the label draw.

    Raises:
        InputError: `seed` is None, and no class with equal labels is large enough.
    """
    of = {int(real_labels[rows[0]]): rows for rows in rows_of(real_labels)}
    classes = sorted(of)
    shares = []
    for rows in rows_of(labels):
        label = int(labels[rows[0]])
        if len(rows) <= k or (seed is None and label not in of):
            continue
        if seed is not None:
            draw = generator(seed64(seed, "diversity-unmatched", label))
            beside = of[classes[int(draw.integers(len(classes)))]]
        else:
            beside = of[label]
        own = features[rows]
        shares.append(covered(real[beside], own, radii(own, k)).mean())
    if not shares and seed is None:
        raise InputError(
            f"diversity: no class with more than {k} generated images and real images of the same "
            "label; accepted is one or more"
        )
    return float(np.mean(shares)) if shares else None, len(shares)


def radii(points: np.ndarray, k: int) -> np.ndarray:
    """Return the squared distance of each point to its k-th nearest other point, float64 [N].

    Args:
        points: float [N, D], N more than k.
        k: 1 or more.
    """
    found = np.empty(len(points))
    for start in range(0, len(points), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(points)))
        squared = _squared(points[rows], points)
        squared[np.arange(len(rows)), rows] = np.inf
        found[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return found


def covered(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
    """Return whether each point lies within the radius of at least one centre, bool [N].

    Args:
        points: float [N, D].
        centres: float [C, D].
        squared_radii: float [C].
    """
    slack = TIE * float(np.square(centres).sum(axis=1).mean())
    parts = [
        (_squared(points[n : n + BLOCK], centres) <= squared_radii + slack).any(axis=1)
        for n in range(0, len(points), BLOCK)
    ]
    return np.concatenate(parts)


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets (Heusel et al. 2017, Eq. 6).

    It is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), with covariances over N - 1. The trace of the
    root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.

    Args:
        first: float [N, D], N of 2 or more.
        second: float [M, D].
    """
    difference = first.mean(axis=0) - second.mean(axis=0)
    one, two = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (first, second))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ two @ root)
    trace = np.trace(one) + np.trace(two) - 2 * np.sqrt(np.clip(mixed, 0, None)).sum()
    return float(difference @ difference + trace)


def _squared(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    middle = centres.mean(axis=0)  # short vectors keep more digits in the differences
    p, c = points - middle, centres - middle
    squared = np.square(p).sum(axis=1)[:, None] + np.square(c).sum(axis=1) - 2 * p @ c.T
    return np.clip(squared, 0, None)
