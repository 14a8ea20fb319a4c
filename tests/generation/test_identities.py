"""The identity bank against brute force and the statistics of the sphere."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.datasets.store import Store
from factory.generation import identities
from factory.recipe import InputError


def test_uniform_contexts_are_unit_spread_and_keyed_by_position() -> None:
    drawn = identities.uniform(5, range(2000), 64)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    cosines = (drawn @ drawn.T)[np.triu_indices(2000, 1)]
    assert abs(cosines.mean()) < 2e-3  # uniform on the sphere: mean 0, variance 1/D
    assert cosines.std() == pytest.approx(1 / 8, rel=0.02)
    np.testing.assert_array_equal(identities.uniform(5, [1999, 7], 64), drawn[[1999, 7]])
    assert not np.allclose(identities.uniform(6, [7], 64), drawn[7])


@pytest.mark.parametrize(
    ("count", "dimension", "slack"),
    [(200, 128, 0.05), (33, 32, 0.02), (48, 32, 0.05), (2, 3, 0.01)],
)
def test_anchors_come_close_to_rankins_bound(count: int, dimension: int, slack: float) -> None:
    found = identities.anchors(count, dimension, 1)
    assert found.dtype == np.float32 and found.shape == (count, dimension)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    closest = (found @ found.T)[np.triu_indices(count, 1)].max()
    bound = identities.least_max_cosine(count, dimension)
    assert bound - 1e-6 <= closest <= bound + slack
    np.testing.assert_array_equal(identities.anchors.__wrapped__(count, dimension, 1), found)


def test_anchors_do_not_depend_on_how_many_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = identities.anchors.__wrapped__
    whole = spread(60, 16, 3, 20)
    monkeypatch.setattr(identities, "ROWS", 7)
    np.testing.assert_allclose(spread(60, 16, 3, 20), whole, atol=1e-4)
    assert not np.allclose(spread(60, 16, 4, 20), whole, atol=0.1)


def test_the_least_maximum_is_that_of_known_codes() -> None:
    cosine = identities.least_max_cosine
    assert cosine(1, 3) == -1.0 and cosine(2, 3) == -1.0
    assert cosine(4, 3) == pytest.approx(-1 / 3)  # tetrahedron
    assert cosine(6, 3) == 0.0  # octahedron
    assert cosine(5, 2) == pytest.approx(np.cos(2 * np.pi / 5))  # pentagon
    assert cosine(20_000, 512) > cosine(2_000, 512) > 0.0
    assert cosine(10**9, 16) == cosine(16 * 19 // 2, 16)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**60), st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_a_perturbed_context_has_the_cosine_asked_for(root: int, wanted: list[float]) -> None:
    contexts = identities.uniform(root, range(len(wanted)), 24)
    seeds = [root + row for row in range(len(wanted))]
    made = identities.perturb(contexts, np.array(wanted), seeds)
    exact = contexts.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose((made * exact).sum(axis=1), wanted, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    alone = identities.perturb(contexts[-1:], np.array(wanted[-1:]), seeds[-1:])
    np.testing.assert_array_equal(alone, made[-1:])


def test_perturbed_directions_have_no_preference() -> None:
    context = np.eye(1, 8)
    made = identities.perturb(np.repeat(context, 4000, 0), np.full(4000, 0.6), range(4000))
    np.testing.assert_allclose(made[:, 1:].mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose((made[:, 1:] ** 2).mean(axis=0), 0.64 / 7, atol=0.01)


def test_bounds_are_half_the_angle_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "ROWS", 3)
    contexts = identities.uniform(2, range(10), 5)
    for lower in (0.3, 0.95):
        expected = []
        for row in range(10):
            others = np.delete(contexts @ contexts[row], row).astype(np.float64)
            expected.append(max(lower, float(np.cos(np.arccos(others) / 2).max())))
        np.testing.assert_allclose(identities.cosine_bounds(contexts, lower), expected, atol=1e-6)
    orthogonal = identities.cosine_bounds(np.eye(6), 0.4)
    np.testing.assert_allclose(orthogonal, np.sqrt(0.5))
    assert identities.cosine_bounds(np.eye(6)[:1], 0.4).tolist() == [0.4]


def brute_force(candidates: np.ndarray, max_cosine: float) -> list[int]:
    kept: list[int] = []
    for row in range(len(candidates)):
        if all(float(candidates[row] @ candidates[other]) <= max_cosine for other in kept):
            kept.append(row)
    return kept


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(-0.2, 0.9), st.integers(1, 40))
def test_packing_is_greedy_in_order(root: int, max_cosine: float, split: int) -> None:
    candidates = identities.uniform(root, range(60), 4)
    expected = brute_force(candidates, max_cosine)
    empty = np.zeros((0, 4), np.float32)
    assert identities.pack(candidates, empty, max_cosine).tolist() == expected
    first = identities.pack(candidates[:split], empty, max_cosine)
    second = identities.pack(candidates[split:], candidates[first], max_cosine)
    assert first.tolist() + (second + split).tolist() == expected


def one_by_one(candidates: np.ndarray, kept: np.ndarray, max_cosine: float) -> list[int]:
    """Compare each candidate with all kept before it, by one product of a matrix and a vector."""
    bank, rows = kept, []
    for row, candidate in enumerate(candidates):
        if not len(bank) or (bank @ candidate).max() <= max_cosine:
            bank = np.concatenate([bank, candidate[None]])
            rows.append(row)
    return rows


@pytest.mark.parametrize("dimension", [3, 128])
def test_blocks_decide_as_one_product_a_candidate_does(
    dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a cosine is the limit to the last bit, which the order of additions decides."""
    monkeypatch.setattr(identities, "ROWS", 16)
    monkeypatch.setattr(identities, "COLUMNS", 24)
    drawn = identities.uniform(3, range(120), dimension)
    candidates = np.concatenate([drawn, drawn[::7], drawn[:9]])
    pairs = np.triu_indices(len(drawn), 1)
    cosines = np.array([drawn[a] @ drawn[b] for a, b in zip(*pairs, strict=True)])
    limits = np.quantile(cosines, np.linspace(0.5, 1.0, 60), method="nearest")
    for kept in (0, 30):
        for limit in limits:
            given = candidates[:kept], float(limit)
            expected = one_by_one(candidates[kept:], *given)
            assert identities.pack(candidates[kept:], *given).tolist() == expected


def test_nothing_is_closer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_nearest", None)  # no product is made
    candidates = identities.uniform(1, range(20), 8)
    candidates[7, 3] = np.nan
    kept = identities.pack(candidates, candidates[:2], 1.0)
    assert kept.tolist() == [row for row in range(20) if row != 7]


def test_a_candidate_that_is_no_number_is_near_to_all() -> None:
    candidates = identities.uniform(1, range(40), 8)
    candidates[5] = np.nan
    empty = np.zeros((0, 8), np.float32)
    assert identities.pack(candidates, empty, 0.5).tolist() == one_by_one(candidates, empty, 0.5)


def test_a_longer_bank_begins_with_the_shorter_one() -> None:
    candidates = identities.uniform(1, range(400), 12)
    short = identities.extend(identities.empty_bank(12), candidates, 20, 0.6)
    rest = candidates[short.drawn :]
    grown = identities.extend(short, rest, 40, 0.6)
    at_once = identities.extend(identities.empty_bank(12), candidates, 40, 0.6)
    np.testing.assert_array_equal(grown.contexts, at_once.contexts)
    np.testing.assert_array_equal(grown.candidates, at_once.candidates)
    assert (grown.drawn, grown.reasons) == (at_once.drawn, at_once.reasons)
    assert grown.drawn == len(grown) + grown.reasons["identity_collision"]
    cosines = (grown.contexts @ grown.contexts.T)[np.triu_indices(40, 1)]
    assert cosines.max() <= 0.6


def test_a_bank_survives_the_disk_block_by_block(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert identities.load_bank(store, "d") is None
    candidates = identities.uniform(1, range(100), 6)
    short = identities.extend(identities.empty_bank(6), candidates, 10, 0.7)
    identities.save_block(store, short, 0, "d")
    grown = identities.extend(short, candidates[short.drawn :], 15, 0.7)
    identities.save_block(store, grown, 10, "d")
    read = identities.load_bank(store, "d")
    assert read is not None
    np.testing.assert_array_equal(read.contexts, grown.contexts)
    assert (read.drawn, read.reasons, len(read)) == (grown.drawn, grown.reasons, 15)
    with pytest.raises(InputError, match="identities of another recipe"):
        identities.load_bank(store, "other")
