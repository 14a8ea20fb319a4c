"""Identity contexts: unit vectors that are drawn at random, spread evenly or perturbed."""

import functools
from collections.abc import Sequence

import numpy as np

from factory.seeding import generator, seed64

ROWS = 1024  # rows of a matrix of cosines that are computed at a time


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length one, float32 [n, D]."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def uniform(root: int, indices: Sequence[int], dimension: int) -> np.ndarray:
    """Draw unit vectors uniformly on the hypersphere, one for each index.

    Args:
        root: the recipe's seed.
        indices: the indices to draw; equal indices give equal vectors.
        dimension: size D of a vector.

    Returns:
        float32 [n, D], unit length: normalised Gaussians (docs/papers.md 2.4, "synthetic uniform").
    """
    draws = [
        generator(seed64(root, "context", index)).standard_normal(dimension) for index in indices
    ]
    return unit(np.stack(draws))


@functools.lru_cache(maxsize=1)
def anchors(count: int, dimension: int, seed: int, steps: int = 200) -> np.ndarray:
    """Spread unit vectors over the hypersphere, as far apart as possible (ID3; Tammes problem).

    The log-sum-exp of each vector's cosines to the others is minimised by gradient steps in the
    tangent plane, from a random start. Meanwhile the log-sum-exp hardens towards the maximum. All
    anchors move together, so that another `count` gives other anchors (docs/papers.md 4.2).

    Args:
        count: number of anchors N.
        dimension: size D of a vector.
        seed: seed of the random start.
        steps: number of gradient steps; after 200 steps, 200 anchors in 128 dimensions are within
            0.03 of the least largest cosine there is (Levenshtein's bound).

    Returns:
        float32 [N, D], unit length, read-only.
    """
    found = uniform(seed, range(count), dimension)
    for share in np.linspace(0.0, 1.0, steps if count > 1 else 0):
        hardness, rate = 20.0 * 10.0**share, 0.02**share
        moved = np.empty_like(found)
        for start in range(0, count, ROWS):
            rows = found[start : start + ROWS]
            cosines = _cosines(rows, found, start)
            weights = np.exp(hardness * (cosines - cosines.max(axis=1, keepdims=True)))
            weights /= weights.sum(axis=1, keepdims=True)
            gradient = weights @ found
            gradient -= (gradient * rows).sum(axis=1, keepdims=True) * rows
            moved[start : start + ROWS] = rows - rate * gradient
        found = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    found.flags.writeable = False
    return found


def perturb(contexts: np.ndarray, cosines: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Turn each context away from itself to a given cosine, in a random direction.

    y = v w + sqrt(1 - v^2) u, where u is a random unit vector orthogonal to w (ID3, Algorithm 3;
    the same as IDperturb's cos(theta) v + sin(theta) u; docs/papers.md 4.2 and 5).

    Args:
        contexts: [n, D] unit vectors w; they are normalised again in float64.
        cosines: [n] in [-1, 1], the cosines v.
        seeds: one 64-bit seed of u for each row.

    Returns:
        float64 [n, D] unit vectors; their cosines to the contexts are `cosines`.
    """
    axes = np.asarray(contexts, np.float64)
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    away = np.stack([generator(seed).standard_normal(axes.shape[1]) for seed in seeds])
    away -= (away * axes).sum(axis=1, keepdims=True) * axes
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    wanted = np.asarray(cosines, np.float64)[:, None]
    return wanted * axes + np.sqrt(1.0 - wanted**2) * away


def cosine_bounds(contexts: np.ndarray, lower: float) -> np.ndarray:
    """Return the lowest cosine to which each identity may be perturbed without meeting another.

    lb_i = max(lower, max_j cos(angle_ij / 2)), IDperturb's bound for each identity (docs/papers.md
    5). If identities are nearly orthogonal, it is 0.71 or more, whatever `lower` is.

    Args:
        contexts: [n, D] unit vectors.
        lower: the lower bound that the recipe asks for.

    Returns:
        float64 [n], the lowest cosine that an identity's images may have to its context.
    """
    vectors = np.asarray(contexts, np.float64)
    nearest = np.full(len(vectors), -1.0)
    for start in range(0, len(vectors), ROWS):
        rows = vectors[start : start + ROWS]
        nearest[start : start + ROWS] = _cosines(rows, vectors, start).max(axis=1, initial=-1.0)
    half = np.sqrt(np.clip((1.0 + nearest) / 2.0, 0.0, 1.0))  # cos(a/2)^2 = (1 + cos a) / 2
    return np.maximum(lower, half)


def _cosines(rows: np.ndarray, vectors: np.ndarray, start: int) -> np.ndarray:
    """Return the cosines of vectors [start, start + n) to all, with -inf for each to itself."""
    cosines = rows @ vectors.T
    cosines[np.arange(len(rows)), start + np.arange(len(rows))] = -np.inf
    return cosines
