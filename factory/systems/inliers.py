"""Which images of a person stand for it: the nearest to its centre, and inliers for outliers."""

import itertools
from typing import Literal

import numpy as np

from factory.diffusion.examples import Examples
from factory.seeding import generator, seed64

OUTLIERS = 0.1  # share of the images that are replaced


def nearest(data: Examples, cosines: np.ndarray, near: int) -> np.ndarray:
    """Return each person's images nearest its centre, int64 [classes, near], -1 for none.

    Args:
        data: the images, by person.
        cosines: of each image to its person's centre, float [N].
        near: how many of each.
    """
    order = np.lexsort((-cosines, data.labels))
    places = data.first[:-1, None] + np.arange(near)
    return np.where(places < data.first[1:, None], order[np.minimum(places, len(data) - 1)], -1)


def trimmed(
    data: Examples,
    cosines: np.ndarray,
    best: np.ndarray,
    within: Literal["dataset", "person"],
    seed: int,
) -> np.ndarray:
    """Return which image stands in the place of each, int64 [N]: an inlier for an outlier.

    Args:
        data: the images, by person.
        cosines: of each image to its person's centre, float [N].
        best: of `nearest`; its first stands in where a person has no inlier.
        within: whether the tenth that is far is that of all images, or as in DCFace's code of
            each person's.
        seed: of the recipe.
    """
    target = np.arange(len(data))
    thresholds = _thresholds(data, cosines, within)
    for row in np.flatnonzero(cosines < thresholds[data.labels]):
        label = data.labels[row]
        peers = data.peers[data.first[label] : data.first[label + 1]]
        inliers = peers[cosines[peers] >= thresholds[label]]
        if len(inliers):
            draws = generator(seed64(seed, "inlier", int(row)))
            target[row] = inliers[draws.integers(len(inliers))]
        else:
            target[row] = best[label, 0]
    return target


def _thresholds(data: Examples, cosines: np.ndarray, within: str) -> np.ndarray:
    """Return each person's cosine below which an image is an outlier, float [classes]."""
    if within == "dataset":
        return np.full(len(data.first) - 1, np.quantile(cosines, OUTLIERS))
    rows = (data.peers[start:end] for start, end in itertools.pairwise(data.first))
    return np.array([np.quantile(cosines[mine], OUTLIERS) for mine in rows])
