"""Unit vectors against brute force and the statistics of the sphere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.systems import contexts
from factory.systems.contexts import (
    anchors,
    cosine_bounds,
    perturb,
    uniform,
)


def test_uniform_contexts_are_unit_spread_and_keyed_by_position() -> None:
    drawn = uniform(5, range(2000), 64)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    cosines = (drawn @ drawn.T)[np.triu_indices(2000, 1)]
    assert abs(cosines.mean()) < 2e-3  # uniform on the sphere: mean 0, variance 1/D
    assert cosines.std() == pytest.approx(1 / 8, rel=0.02)
    np.testing.assert_array_equal(uniform(5, [1999, 7], 64), drawn[[1999, 7]])
    assert not np.allclose(uniform(6, [7], 64), drawn[7])


def least_max_cosine(count: int, dimension: int) -> float:
    """Return a lower bound on the largest cosine between any two of N unit vectors.

    Up to 2 D vectors this is Rankin's bound, which is reached: -1 / (N - 1) up to D + 1 vectors, 0
    up to 2 D. For more vectors it is Levenshtein's bound of the third degree,
    N = D (1 - s) (2 + (D + 1) s) / (1 - D s^2), which holds up to D (D + 3) / 2 vectors; beyond
    them its value there remains a lower bound.
    """
    if count <= dimension + 1:
        return -1.0 / (count - 1) if count > 1 else -1.0
    if count <= 2 * dimension:
        return 0.0
    d, n = dimension, min(count, dimension * (dimension + 3) // 2)
    # The formula solved for s: d (n - d - 1) s^2 + d (d - 1) s - (n - 2 d) = 0.
    a, b, c = d * (n - d - 1), d * (d - 1), n - 2 * d
    return (math.sqrt(b * b + 4 * a * c) - b) / (2 * a)


@pytest.mark.parametrize(
    ("count", "dimension", "slack"),
    [(200, 128, 0.05), (33, 32, 0.02), (48, 32, 0.05), (2, 3, 0.01)],
)
def test_anchors_come_close_to_rankins_bound(count: int, dimension: int, slack: float) -> None:
    found = anchors(count, dimension, 1)
    assert found.dtype == np.float32 and found.shape == (count, dimension)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    closest = (found @ found.T)[np.triu_indices(count, 1)].max()
    bound = least_max_cosine(count, dimension)
    assert bound - 1e-6 <= closest <= bound + slack
    np.testing.assert_array_equal(anchors.__wrapped__(count, dimension, 1), found)


def test_anchors_do_not_depend_on_how_many_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = anchors.__wrapped__
    whole = spread(60, 16, 3, 20)
    monkeypatch.setattr(contexts, "ROWS", 7)
    np.testing.assert_allclose(spread(60, 16, 3, 20), whole, atol=1e-4)
    assert not np.allclose(spread(60, 16, 4, 20), whole, atol=0.1)


def test_the_least_maximum_is_that_of_known_codes() -> None:
    cosine = least_max_cosine
    assert cosine(1, 3) == -1.0 and cosine(2, 3) == -1.0
    assert cosine(4, 3) == pytest.approx(-1 / 3)  # tetrahedron
    assert cosine(6, 3) == 0.0  # octahedron
    assert cosine(5, 2) == pytest.approx(np.cos(2 * np.pi / 5))  # pentagon
    assert cosine(20_000, 512) > cosine(2_000, 512) > 0.0
    assert cosine(10**9, 16) == cosine(16 * 19 // 2, 16)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**60), st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_a_perturbed_context_has_the_cosine_asked_for(root: int, wanted: list[float]) -> None:
    drawn = uniform(root, range(len(wanted)), 24)
    seeds = [root + row for row in range(len(wanted))]
    made = perturb(drawn, np.array(wanted), seeds)
    exact = drawn.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose((made * exact).sum(axis=1), wanted, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    alone = perturb(drawn[-1:], np.array(wanted[-1:]), seeds[-1:])
    np.testing.assert_array_equal(alone, made[-1:])


def test_perturbed_directions_have_no_preference() -> None:
    context = np.eye(1, 8)
    made = perturb(np.repeat(context, 4000, 0), np.full(4000, 0.6), range(4000))
    np.testing.assert_allclose(made[:, 1:].mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose((made[:, 1:] ** 2).mean(axis=0), 0.64 / 7, atol=0.01)


def test_bounds_are_half_the_angle_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "ROWS", 3)
    drawn = uniform(2, range(10), 5)
    for lower in (0.3, 0.95):
        expected = []
        for row in range(10):
            others = np.delete(drawn @ drawn[row], row).astype(np.float64)
            expected.append(max(lower, float(np.cos(np.arccos(others) / 2).max())))
        np.testing.assert_allclose(cosine_bounds(drawn, lower), expected, atol=1e-6)
    orthogonal = cosine_bounds(np.eye(6), 0.4)
    np.testing.assert_allclose(orthogonal, np.sqrt(0.5))
    assert cosine_bounds(np.eye(6)[:1], 0.4).tolist() == [0.4]
