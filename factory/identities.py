"""Identity contexts: drawn on the hypersphere, packed apart, kept in a bank.

A bank is a dataset of its own: parquet blocks that are never edited, each with a manifest written
last. Candidates are judged in the order of their numbers, so that a longer bank begins with every
shorter one and a dataset grows against frozen identities.
"""

import functools
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.recipe import InputError
from factory.seeding import generator, seed64
from factory.shards.store import Store

COLLISION = "identity_collision"
ROWS, COLUMNS = 1024, 16_384  # of a matrix of cosines held at a time


def uniform(root: int, indices: Sequence[int], dimension: int) -> np.ndarray:
    """Draw unit vectors uniformly on the hypersphere, one for each index.

    Args:
        root: the recipe's seed.
        indices: the positions drawn; equal positions give equal vectors.
        dimension: size D of a vector.

    Returns:
        float32 [n, D], unit length: a normalised Gaussian (papers.md 2.4, "synthetic uniform").
    """
    draws = [
        generator(seed64(root, "context", index)).standard_normal(dimension) for index in indices
    ]
    vectors = np.stack(draws)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def anchors(count: int, dimension: int, seed: int, steps: int = 200) -> np.ndarray:
    """Spread unit vectors over the hypersphere, as far from each other as can be (ID3, Tammes).

    Minimises the log-sum-exp of each vector's cosines to the others by steps along its gradient in
    the tangent plane, from a random start, while the log-sum-exp hardens into the maximum. All
    anchors move together: they are a function of `count`, and those of a smaller count are
    others.

    Args:
        count: number of anchors N.
        dimension: size D of a vector.
        seed: of the start.
        steps: of the descent; 200 bring 200 anchors in 128 dimensions within 0.03 of
            `least_max_cosine`.

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


def least_max_cosine(count: int, dimension: int) -> float:
    """Return a cosine that the closest two of N unit vectors cannot all stay under.

    Rankin's bound, which is reached: -1 / (N - 1) up to D + 1 vectors, 0 up to 2 D. For more,
    Levenshtein's of the third degree, N = D (1 - s) (2 + (D + 1) s) / (1 - D s^2), which holds up
    to D (D + 3) / 2 vectors and stays a lower bound beyond.
    """
    if count <= dimension + 1:
        return -1.0 / (count - 1) if count > 1 else -1.0
    if count <= 2 * dimension:
        return 0.0
    d, n = dimension, min(count, dimension * (dimension + 3) // 2)
    # The formula solved for s: d (n - d - 1) s^2 + d (d - 1) s - (n - 2 d) = 0.
    a, b, c = d * (n - d - 1), d * (d - 1), n - 2 * d
    return (math.sqrt(b * b + 4 * a * c) - b) / (2 * a)


def perturb(contexts: np.ndarray, cosines: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Turn each context away to a given cosine, in a direction of its own.

    y = v w + sqrt(1 - v^2) u with u a random unit vector orthogonal to w (ID3, Algorithm 3;
    the same as IDperturb's cos(theta) v + sin(theta) u).

    Args:
        contexts: [n, D] unit vectors w; they are normalised again in float64.
        cosines: [n] in [-1, 1], v.
        seeds: one 64-bit seed a row, of u.

    Returns:
        float64 [n, D] unit vectors, whose cosines to the contexts are those asked for.
    """
    axes = np.asarray(contexts, np.float64)
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    away = np.stack([generator(seed).standard_normal(axes.shape[1]) for seed in seeds])
    away -= (away * axes).sum(axis=1, keepdims=True) * axes
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    wanted = np.asarray(cosines, np.float64)[:, None]
    return wanted * axes + np.sqrt(1.0 - wanted**2) * away


def cosine_bounds(contexts: np.ndarray, lower: float) -> np.ndarray:
    """Return how far each identity may be perturbed without reaching into a neighbour's half.

    lb_i = max(lower, max_j cos(angle_ij / 2)), IDperturb's bound for each identity. Where they
    are nearly orthogonal it is 0.71 or more, whatever `lower` says.

    Args:
        contexts: [n, D] unit vectors.
        lower: the cosine asked for.

    Returns:
        float64 [n], the lowest cosine to its context that each identity may get.
    """
    vectors = np.asarray(contexts, np.float64)
    nearest = np.full(len(vectors), -1.0)
    for start in range(0, len(vectors), ROWS):
        rows = vectors[start : start + ROWS]
        nearest[start : start + ROWS] = _cosines(rows, vectors, start).max(axis=1, initial=-1.0)
    half = np.sqrt(np.clip((1.0 + nearest) / 2.0, 0.0, 1.0))  # cos(a/2)^2 = (1 + cos a) / 2
    return np.maximum(lower, half)


def _cosines(rows: np.ndarray, vectors: np.ndarray, start: int) -> np.ndarray:
    """Return cosines of vectors [start, start + n) to all, minus infinity for each to itself."""
    cosines = rows @ vectors.T
    cosines[np.arange(len(rows)), start + np.arange(len(rows))] = -np.inf
    return cosines


def pack(candidates: np.ndarray, kept: np.ndarray, max_cosine: float) -> np.ndarray:
    """Keep the candidates that stay apart, walking in order (greedy r-ball packing, DCFace 4.2).

    Cosines come from products of blocks. Where their rounding could decide, the candidate is
    compared alone, so that the choice is that of a walk which compares one after another.

    Args:
        candidates: float32 [n, D] unit vectors.
        kept: float32 [m, D] unit vectors kept earlier; they are never dropped.
        max_cosine: a candidate closer than this to any vector kept before it is dropped.

    Returns:
        int64 [k], rows of the candidates that were kept, in order.
    """
    if max_cosine >= 1.0:  # nothing is closer; what is not finite is near to nothing either
        return np.flatnonzero(np.isfinite(candidates).all(axis=1))
    bank = np.concatenate([kept, np.zeros_like(candidates)])
    count = len(kept)
    rows: list[int] = []
    for start in range(0, len(candidates), ROWS):
        block = candidates[start : start + ROWS]
        before, doubt = _nearest(block, bank[:count])
        among, doubt = block @ block.T, np.maximum(doubt, _doubt(block, block))
        fresh: list[int] = []
        for row, candidate in enumerate(block):
            nearest = np.maximum(before[row], among[row, fresh].max(initial=-np.inf))
            if not abs(float(nearest) - max_cosine) > doubt:  # a NaN is doubtful, too
                nearest = (bank[:count] @ candidate).max(initial=-1.0)
            if nearest <= max_cosine:
                bank[count] = candidate
                count += 1
                fresh.append(row)
        rows += [start + row for row in fresh]
    return np.array(rows, np.int64)


def _nearest(rows: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.float64]:
    """Return each row's highest cosine to any of the vectors, and what rounding may change it."""
    highest, doubt = np.full(len(rows), -np.inf, np.float32), np.float64(0.0)
    for first in range(0, len(vectors), COLUMNS):
        part = vectors[first : first + COLUMNS]
        highest = np.maximum(highest, (rows @ part.T).max(axis=1))
        doubt = np.maximum(doubt, _doubt(rows, part))
    return highest, doubt


def _doubt(x: np.ndarray, y: np.ndarray) -> np.float64:
    """Return by how much two float32 products of rows of x and y can differ at most.

    Adding up D products in any order is off by at most D roundings of |x| |y|, 2^-24 each; two more
    are for what the result is compared with.
    """
    squares = [np.einsum("ij,ij->i", part, part).max(initial=0.0) for part in (x, y)]
    return np.float64(1.1 * (x.shape[1] + 2) * 2.0**-23) * np.sqrt(np.prod(squares, dtype=float))


@dataclass
class Bank:
    """The contexts of a dataset, in identity order.

    Attributes:
        contexts: float32 [n, D] unit vectors; row i is identity i.
        candidates: int64 [n], the candidate number each identity came from.
        drawn: how many candidates have been judged.
        reasons: how many of them were dropped, by reason.
    """

    contexts: np.ndarray
    candidates: np.ndarray
    drawn: int
    reasons: dict[str, int]

    def __len__(self) -> int:
        """Return the number of identities."""
        return len(self.contexts)


def empty_bank(dimension: int) -> Bank:
    """Return a bank of no identities."""
    return Bank(np.zeros((0, dimension), np.float32), np.zeros(0, np.int64), 0, {COLLISION: 0})


def extend(bank: Bank, candidates: np.ndarray, count: int, max_cosine: float) -> Bank:
    """Judge the next candidates in order, up to `count` identities; returns the longer bank.

    `count` must be more than the bank already has.
    """
    kept = pack(candidates, bank.contexts, max_cosine)[: count - len(bank)]
    full = len(bank) + len(kept) == count  # what follows the last kept one was not needed
    judged = int(kept[-1]) + 1 if full else len(candidates)
    reasons = dict(bank.reasons)
    reasons[COLLISION] += judged - len(kept)
    return Bank(
        np.concatenate([bank.contexts, candidates[kept]]),
        np.concatenate([bank.candidates, bank.drawn + kept]),
        bank.drawn + judged,
        reasons,
    )


def save_block(store: Store, bank: Bank, start: int, bank_digest: str) -> str:
    """Commit identities [start, len(bank)) as one block of the bank, its manifest last."""
    name = f"bank/i{start:07d}-{len(bank):07d}"
    table = pa.table(
        {
            "identity": np.arange(start, len(bank), dtype=np.int64),
            "candidate": bank.candidates[start:],
            "context": pa.FixedSizeListArray.from_arrays(
                pa.array(bank.contexts[start:].ravel()), bank.contexts.shape[1]
            ),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    block = sink.getvalue()
    store.write(f"{name}.parquet", block)
    manifest = {
        "bank_digest": bank_digest,
        "drawn": bank.drawn,
        "reasons": bank.reasons,
        "sha256": hashlib.sha256(block).hexdigest(),
    }
    store.write(f"{name}.json", json.dumps(manifest, sort_keys=True).encode())
    return name


def load_bank(store: Store, bank_digest: str) -> Bank | None:
    """Read the bank of a dataset; None where no block was committed.

    Raises:
        InputError: the folder holds a bank of another recipe.
    """
    names = sorted(name for name in store.list("bank") if name.endswith(".json"))
    if not names:
        return None
    contexts, candidates = [], []
    manifest: dict = {}
    for name in names:
        manifest = json.loads(store.read(name))
        if manifest["bank_digest"] != bank_digest:
            raise InputError(
                f"bank {name}: digest {manifest['bank_digest']}, accepted is {bank_digest}: "
                "the folder holds the identities of another recipe"
            )
        table = pq.read_table(io.BytesIO(store.read(name.removesuffix("json") + "parquet")))
        column = table["context"].combine_chunks()
        contexts.append(
            np.asarray(column.flatten(), np.float32).reshape(len(table), column.type.list_size)
        )
        candidates.append(np.asarray(table["candidate"]))
    return Bank(
        np.concatenate(contexts), np.concatenate(candidates), manifest["drawn"], manifest["reasons"]
    )
