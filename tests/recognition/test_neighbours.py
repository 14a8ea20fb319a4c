"""Nearest faces and greedy packing against brute force in float64, on ordinary and hostile rows."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from factory.recognition import neighbours
from factory.recognition.neighbours import SCANS, Faces, packed

SMALL_BLOCKS = 1  # bytes: the smallest blocks there are


def unit(rows: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Every cosine, each a float64 sum of its own."""
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    return np.stack([np.einsum("j,ij->i", row, wide_y) for row in wide_x])


def brute(x: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    every = cosines(x, y)
    rows = np.argsort(-every, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(every, rows, axis=1)


def hostile() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Queries and faces that try the search: ties, near ties, zeros, one face."""
    spread, one = unit(300), unit(1)
    signs = np.array([[1.0], [-1.0]], np.float32)
    tilted = unit(1) + 1e-7 * unit(500, seed=3)  # nearer together than either scan can tell
    tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
    return {
        "random": (unit(70, seed=1), spread),
        "all equal": (np.repeat(one, 5, axis=0), np.repeat(one, 300, axis=0)),
        "each face five times": (unit(20, seed=2), np.repeat(unit(60), 5, axis=0)),
        "queries are faces": (spread[::7], spread),
        "opposite": (one * signs, np.repeat(one * signs, 100, axis=0)),
        "near ties": (unit(9, seed=4), tilted.astype(np.float32)),
        "rows of zeros": (np.zeros((3, 16), np.float32), np.zeros((200, 16), np.float32)),
        "zeros among faces": (-one, np.concatenate([one, np.zeros((1, 16), np.float32)])),
        "one face": (unit(4), one),
    }


@pytest.mark.parametrize("scan", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", hostile())
@pytest.mark.parametrize("k", [1, 3, 80])
def test_the_nearest_are_those_of_brute_force(case: str, k: int, scan, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 32)
    queries, faces = hostile()[case]
    k = min(k, len(faces))
    rows, values = brute(queries, faces, k)
    for memory in (SMALL_BLOCKS, neighbours.MEMORY_BYTES):
        found = Faces(faces).nearest(queries, k, memory, scan=scan)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_array_equal(found.cosines, values)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31))
def test_ties_go_to_the_lower_row(faces: int, queries: int, k: int, seed: int) -> None:
    """Rows of few directions, so that most cosines are equal."""
    rng = np.random.default_rng(seed)
    directions = np.eye(4, dtype=np.float32)
    held, asked = directions[rng.integers(4, size=faces)], directions[rng.integers(4, size=queries)]
    k = min(k, faces)
    rows, values = brute(asked, held, k)
    found = Faces(held).nearest(asked, k, SMALL_BLOCKS)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.cosines, values)


def test_the_nearest_are_those_of_scikit_learn() -> None:
    queries, faces = unit(50, 64, seed=1), unit(2000, 64)
    index = NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute").fit(faces)
    distances, rows = index.kneighbors(queries)
    found = Faces(faces).nearest(queries, 4)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.cosines, 1 - distances, atol=1e-6)


@pytest.mark.parametrize("scan", SCANS)
def test_memory_stays_below_the_bound_when_everything_is_in_doubt(scan) -> None:
    faces = np.repeat(unit(1), 20_000, axis=0)
    bound = 100_000_000
    tracemalloc.start()  # sees numpy's memory; torch's block is the smaller part
    Faces(faces).nearest(faces[:64], 2, bound, scan=scan)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < bound


@pytest.mark.ray
def test_ray_tasks_give_the_same_answer(ray_cluster) -> None:
    queries, faces = unit(41, seed=1), Faces(np.repeat(unit(90), 2, axis=0))
    alone, split = faces.nearest(queries, 3), faces.nearest(queries, 3, tasks=2)
    np.testing.assert_array_equal(alone.rows, split.rows)
    np.testing.assert_array_equal(alone.cosines, split.cosines)


def greedy(embeddings: np.ndarray, r: float) -> np.ndarray:
    every = cosines(embeddings, embeddings)
    kept: list[int] = []
    for row in range(len(embeddings)):
        if all(every[row, other] < r for other in kept):
            kept.append(row)
    return np.isin(np.arange(len(embeddings)), kept)


@pytest.mark.parametrize("scan", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", hostile())
@pytest.mark.parametrize("r", [-1.0, 0.0, 0.3, 1.0])
def test_packing_is_the_greedy_walk(case: str, r: float, scan, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 32)
    for rows in hostile()[case]:
        for memory in (SMALL_BLOCKS, neighbours.MEMORY_BYTES):
            np.testing.assert_array_equal(packed(rows, r, memory, scan), greedy(rows, r))


@pytest.mark.ray
def test_packing_by_ray_tasks_keeps_the_same(ray_cluster, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", 16)
    rows = np.repeat(unit(90), 2, axis=0)[np.random.default_rng(0).permutation(180)]
    for r, earlier in ((0.2, None), (0.3, unit(7, seed=1)), (1.0, None)):
        alone = packed(rows, r, earlier=earlier)
        np.testing.assert_array_equal(packed(rows, r, earlier=earlier, tasks=3), alone)
        assert 0 < alone.sum() < len(rows)


def test_packing_at_a_cosine_that_is_reached_exactly() -> None:
    """`below r` is strict, also where a scan cannot tell."""
    rows = unit(40)
    r = cosines(rows, rows)[0, 1]
    assert packed(rows[:2], r).tolist() == [True, False]
    assert packed(rows[:2], np.nextafter(r, 1)).tolist() == [True, True]


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0])
def test_rows_that_are_no_directions_are_named(value: float) -> None:
    bad = unit(9)
    bad[4, 2] = value
    with pytest.raises(ValueError, match=r"faces: row 4 has length .*; accepted is 1 or 0"):
        Faces(bad)
    with pytest.raises(ValueError, match="queries: row 4"):
        Faces(unit(9)).nearest(bad)
    with pytest.raises(ValueError, match="faces: row 4"):
        packed(bad, 0.5)


def test_wrong_questions_are_refused() -> None:
    faces = Faces(unit(5))
    with pytest.raises(ValueError, match="k is 6; accepted is 1 to the number of faces, 5"):
        faces.nearest(unit(2), 6)
    with pytest.raises(ValueError, match=r"dimension 8, accepted is the faces' 16"):
        faces.nearest(unit(2, 8))
    with pytest.raises(ValueError, match="there are none"):
        Faces(np.empty((0, 16)))
    with pytest.raises(ValueError, match=r"shape \[16\]; accepted is \[N, D\]"):
        Faces(unit(1)[0])
    nothing = faces.nearest(np.empty((0, 16), np.float32), 2)
    assert nothing.rows.shape == nothing.cosines.shape == (0, 2)
