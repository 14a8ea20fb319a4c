"""Nearest faces: exact search over unit embeddings, in blocks of bounded memory.

A block of cosines is scanned with fast, coarse arithmetic. Dot products in float64 then decide the
cosines that the scan's rounding leaves in doubt. The results therefore do not depend on blocks,
threads or Ray tasks, nor on the arithmetic of the scan. Ties go to the lower row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from factory.cluster.hardware import processor

MEMORY_BYTES = 4_000_000_000  # of a search, beside its arguments and its result
ROWS = 1024  # queries of one block
CHUNK = 64  # cosines whose maximum is taken before single ones are compared
PAIR_BYTES = 96  # memory of one cosine at worst, if a whole block is in doubt
MOST_COLUMNS = 32_768
RESCORED = 8192  # pairs that are computed in float64 at once
DOUBTFUL = 0.01  # if a larger share of a block is in doubt, a finer scan is cheaper
UNIT_ERROR = 1e-3  # largest error of a squared length

Scan = Literal["bfloat16", "float32"]
SCANS: tuple[Scan, ...] = ("bfloat16", "float32") if processor(gpu=False).bfloat16 else ("float32",)


@dataclass(frozen=True)
class Nearest:
    """The nearest faces of each query, nearest first.

    Attributes:
        rows: int64 [Q, k], rows of the faces.
        cosines: float64 [Q, k], falling along each row; equal ones are in the order of `rows`.
    """

    rows: np.ndarray
    cosines: np.ndarray


class Faces:
    """A set of unit embeddings in which to search."""

    def __init__(self, embeddings: np.ndarray) -> None:
        """Check the embeddings and keep them as float32; float32 arrays are not copied.

        Args:
            embeddings: rows of length 1 or 0, float [N, D], N of 1 or more.

        Raises:
            ValueError: the array has another shape, or a row is not finite or has another length.
        """
        self.unit = _checked(embeddings, "faces")
        if not len(self.unit):
            raise ValueError("faces: there are none; accepted is 1 or more")

    def __len__(self) -> int:
        """Return how many faces there are."""
        return len(self.unit)

    def nearest(
        self,
        queries: np.ndarray,
        k: int = 1,
        memory_bytes: int = MEMORY_BYTES,
        tasks: int = 0,
        scan: Scan = SCANS[0],
    ) -> Nearest:
        """Return the k faces with the highest cosine to each query, exactly.

        Time grows with Q x N x D; the work in float64 grows with the number of near ties.

        Args:
            queries: rows of length 1 or 0, float [Q, D].
            k: from 1 to the number of faces.
            memory_bytes: bound on memory beside queries, faces and result, of all tasks together.
            tasks: number of Ray tasks of one CPU each that share the queries; the caller connects
                Ray. 0 searches in this process, with torch's threads.
            scan: arithmetic of the scan; it changes the time but not the result.

        Raises:
            ValueError: k is out of range, or queries have another dimension, are not finite or do
                not have unit length.
        """
        queries = _checked(queries, "queries")
        if queries.shape[1] != self.unit.shape[1]:
            raise ValueError(
                f"queries: dimension {queries.shape[1]}, accepted is the faces' "
                f"{self.unit.shape[1]}"
            )
        if not 1 <= k <= len(self.unit):
            raise ValueError(f"k is {k}; accepted is 1 to the number of faces, {len(self.unit)}")
        if tasks:
            return self._spread(queries, k, memory_bytes, tasks, scan)
        columns = _columns(memory_bytes)
        rows = np.empty((len(queries), k), np.int64)
        cosines = np.empty((len(queries), k))
        for start in range(0, len(queries), ROWS):
            part = slice(start, start + ROWS)
            rows[part], cosines[part] = _search(queries[part], self.unit, k, columns, scan)
        return Nearest(rows, cosines)

    def _spread(
        self, queries: np.ndarray, k: int, memory_bytes: int, tasks: int, scan: Scan
    ) -> Nearest:
        import ray

        if not ray.is_initialized():
            raise ValueError(f"tasks is {tasks}, but Ray is not connected; accepted then is 0")
        held = ray.put(self.unit)
        search = ray.remote(_task)
        found = ray.get(
            [
                search.remote(part, held, k, memory_bytes // tasks, scan)
                for part in np.array_split(queries, tasks)
            ]
        )
        return Nearest(
            np.concatenate([part.rows for part in found]),
            np.concatenate([part.cosines for part in found]),
        )


def packed(
    embeddings: np.ndarray,
    r: float,
    memory_bytes: int = MEMORY_BYTES,
    scan: Scan = SCANS[0],
    earlier: np.ndarray | None = None,
    tasks: int = 0,
) -> np.ndarray:
    """Walk over faces and keep one if its cosine to every face kept before is below r.

    A cosine of exactly r is too near (DCFace 4.2; docs/papers.md 0.4). A caller that also keeps
    equal ones, as `max_cosine` of a generate recipe does, passes `numpy.nextafter(r, 2)`. Time
    grows with N x K x D, where K faces are kept.

    Args:
        embeddings: rows of length 1 or 0, float [N, D], in the order of the walk.
        r: a cosine.
        memory_bytes: bound on memory beside the embeddings.
        scan: arithmetic of the scan; it changes the time but not the result.
        earlier: faces that are kept before the walk begins and never dropped, float [M, D].
        tasks: number of Ray tasks of one CPU each that compare with faces kept before; the caller
            connects Ray. 0 compares in this process, with torch's threads.

    Returns:
        bool [N], whether each face is kept.

    Raises:
        ValueError: an array has another shape, or a row is not finite or has another length.
    """
    unit = _checked(embeddings, "faces")
    before = np.zeros((0, unit.shape[1]), np.float32)
    before = before if earlier is None else _checked(earlier, "earlier faces")
    kept = np.zeros(len(unit), bool)
    columns = _columns(memory_bytes // max(tasks, 1))
    faraway = _Faraway(tasks, r, columns, scan, before)
    for rows in faraway.rows(unit, kept):
        near = np.zeros((len(rows), len(rows)), bool)
        near[_close(unit[rows], unit[rows], r, scan)] = True
        free = np.ones(len(rows), bool)
        for row in range(len(rows)):
            if free[row]:
                kept[rows[row]] = True
                free[row + 1 :] &= ~near[row, row + 1 :]
    return kept


class _Faraway:
    """The faces of a walk that are not near any face kept before their block.

    Several blocks are compared at a time, with the faces kept before the first of them, as Ray
    tasks; a block is then compared with what was kept since, in this process.
    """

    def __init__(self, tasks: int, r: float, columns: int, scan: Scan, before: np.ndarray) -> None:
        self.tasks = tasks
        self.how: tuple[float, int, Scan] = (r, columns, scan)
        self.before = before
        if tasks:
            import ray

            if not ray.is_initialized():
                raise ValueError(f"tasks is {tasks}, but Ray is not connected; accepted then is 0")
            self.compare: Any = ray.remote(_apart)
            self.put, self.get = ray.put, ray.get
            self.held = [ray.put(before)]

    def rows(self, unit: np.ndarray, kept: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the rows of each block; `kept` [N] must be right for all rows yielded before."""
        stride = ROWS * max(self.tasks, 1)
        for outset in range(0, len(unit), stride):
            starts = range(outset, min(outset + stride, len(unit)), ROWS)
            for start, left in zip(starts, self._compared(unit, kept, starts), strict=True):
                rows = start + left
                since = unit[outset:start][kept[outset:start]]
                yield rows[_apart(unit[rows], *self.how, since)]

    def _compared(self, unit: np.ndarray, kept: np.ndarray, starts: range) -> list[np.ndarray]:
        """Return for each block which of its faces are apart from all kept before the first."""
        blocks = [unit[start : start + ROWS] for start in starts]
        first = starts[0]
        if not self.tasks:
            others = self.before, unit[:first][kept[:first]]
            return [_apart(block, *self.how, *others) for block in blocks]
        fresh = slice(max(first - ROWS * self.tasks, 0), first)
        self.held.append(self.put(unit[fresh][kept[fresh]]))
        tasks = [self.compare.remote(block, *self.how, *self.held) for block in blocks]
        return self.get(tasks)


def _apart(unit: np.ndarray, r: float, columns: int, scan: Scan, *others: np.ndarray) -> np.ndarray:
    """Return the rows of faces whose cosine to all others is below r, int64, in order."""
    rows = np.arange(len(unit))
    for faces in others:
        for first in range(0, len(faces), columns):
            taken, _ = _close(unit[rows], faces[first : first + columns], r, scan)
            rows = np.delete(rows, taken)
    return rows


def _checked(embeddings: np.ndarray, what: str) -> np.ndarray:
    if embeddings.ndim != 2:
        raise ValueError(f"{what}: shape {list(embeddings.shape)}; accepted is [N, D]")
    unit = np.ascontiguousarray(embeddings, np.float32)
    squares = np.einsum("ij,ij->i", unit, unit)
    good = (np.abs(squares - 1.0) < UNIT_ERROR) | (squares == 0.0)
    if not good.all():  # NaN and infinity are not good either
        row = int(np.argmin(good))
        raise ValueError(
            f"{what}: row {row} has length {np.sqrt(squares[row]):g}; accepted is 1 or 0"
        )
    return unit


def _columns(memory_bytes: int) -> int:
    fitting = memory_bytes // (ROWS * PAIR_BYTES) // CHUNK * CHUNK
    return int(min(max(fitting, CHUNK), MOST_COLUMNS))


def _task(queries: np.ndarray, unit: np.ndarray, k: int, memory_bytes: int, scan: Scan) -> Nearest:
    return Faces(unit).nearest(queries, k, memory_bytes, scan=scan)


def _search(
    queries: np.ndarray, unit: np.ndarray, k: int, columns: int, scan: Scan
) -> tuple[np.ndarray, np.ndarray]:
    best = np.full((len(queries), k), -np.inf)
    rows = np.full((len(queries), k), len(unit))
    for start in range(0, len(unit), columns):
        cosines, error = _product(queries, unit[start : start + columns], scan)
        query, face = _candidates(cosines, error, best[:, -1], k)
        face += start
        exact = _exact(queries, unit, query, face)
        best, rows = _merged(best, rows, query, face, exact)
    return rows, best


def _product(x: np.ndarray, y: np.ndarray, scan: Scan) -> tuple[Tensor, float]:
    """Return cosines [n, m] of unit rows, and a bound on their rounding error.

    For rows of length 1 the sum of |x y| is at most 1, so a sum of D products has an error of at
    most D float32 roundings. bfloat16 rounds x, y and the result by 2^-9 of their size each.
    """
    error = x.shape[1] * 2.0**-23
    if scan == "float32":
        return torch.tensor(x) @ torch.tensor(y).T, error
    product = torch.tensor(x).bfloat16() @ torch.tensor(y).bfloat16().T
    return product, error + 3.1 * 2.0**-9


def _candidates(
    cosines: Tensor, error: float, known: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, column) of all cosines that may be among the k highest of their row.

    The k-th highest maximum over chunks of a row is at most its k-th highest cosine.

    Args:
        cosines: [n, m], with an error of at most `error`.
        error: bound on the rounding error.
        known: float64 [n], for each row a cosine that k faces reach already.
        k: number of faces to find.
    """
    chunks, highest = _chunked(cosines)
    floor = known
    count = highest.shape[1]
    if count >= k:
        reached = np.partition(highest, count - k, axis=1)[:, count - k]
        floor = np.maximum(known, reached - error)
    row, column, _ = _reaching(chunks, highest, floor - error)
    real = column < cosines.shape[1]
    return row[real], column[real]


def _chunked(cosines: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return cosines as chunks [n, C, CHUNK], filled up with -inf, and their maxima [n, C]."""
    rest = -cosines.shape[1] % CHUNK
    padded = torch.nn.functional.pad(cosines, (0, rest), value=-torch.inf) if rest else cosines
    chunks = padded.view(len(cosines), padded.shape[1] // CHUNK, CHUNK)
    return chunks, chunks.amax(-1).float().numpy()


def _reaching(
    chunks: Tensor, highest: np.ndarray, least: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, column and value of all cosines that reach `least` [n] of their row."""
    row, chunk = np.nonzero(highest >= least[:, None])
    inside = chunks[torch.from_numpy(row), torch.from_numpy(chunk)].float().numpy()
    hit, place = np.nonzero(inside >= least[row][:, None])
    return row[hit], chunk[hit] * CHUNK + place, inside[hit, place]


def _exact(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Return float64 dot products of rows x[i] and y[j]; each is summed in the same order."""
    found = np.empty(len(i))
    for start in range(0, len(i), RESCORED):
        part = slice(start, start + RESCORED)
        pair = x[i[part]].astype(np.float64), y[j[part]].astype(np.float64)
        found[part] = np.einsum("ij,ij->i", *pair)
    return found


def _merged(
    best: np.ndarray, rows: np.ndarray, query: np.ndarray, face: np.ndarray, cosines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    count, k = best.shape
    queries = np.concatenate([np.repeat(np.arange(count), k), query])
    faces = np.concatenate([rows.ravel(), face])
    values = np.concatenate([best.ravel(), cosines])
    order = np.lexsort((faces, -values, queries))
    first = np.searchsorted(queries[order], np.arange(count))
    taken = order[(first[:, None] + np.arange(k)).ravel()]
    return values[taken].reshape(count, k), faces[taken].reshape(count, k)


def _close(x: np.ndarray, y: np.ndarray, r: float, scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Return (row of x, row of y) for all pairs whose cosine is r or more."""
    cosines, error = _product(x, y, scan)
    i, j, values = _reaching(*_chunked(cosines), np.full(len(x), r - error))
    doubt = values < r + error
    if scan == "bfloat16" and doubt.sum() > DOUBTFUL * cosines.numel():
        return _close(x, y, r, "float32")
    sure = ~doubt
    sure[doubt] = _exact(x, y, i[doubt], j[doubt]) >= r
    return i[sure], j[sure]
