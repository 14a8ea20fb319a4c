"""The identity bank against brute force."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.datasets.store import Store
from factory.generation import identities
from factory.recipe import InputError
from factory.recognition import neighbours
from factory.systems.contexts import uniform


def brute_force(candidates: np.ndarray, max_cosine: float, kept: int = 0) -> list[int]:
    """Return the rows of a walk that compares one after another; the first are kept already."""
    wide = candidates.astype(np.float64)
    taken = list(range(kept))
    for row in range(kept, len(candidates)):
        if all(wide[row] @ wide[other] <= max_cosine for other in taken):
            taken.append(row)
    return taken[kept:]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(-0.2, 0.9), st.integers(1, 40))
def test_packing_is_greedy_in_order(root: int, max_cosine: float, split: int) -> None:
    candidates = uniform(root, range(60), 4)
    expected = brute_force(candidates, max_cosine)
    empty = np.zeros((0, 4), np.float32)
    assert identities.apart(candidates, empty, max_cosine).tolist() == expected
    first = identities.apart(candidates[:split], empty, max_cosine)
    second = identities.apart(candidates[split:], candidates[first], max_cosine)
    assert first.tolist() + (second + split).tolist() == expected


@pytest.mark.parametrize("dimension", [3, 128])
def test_a_cosine_of_the_limit_is_kept_whatever_is_computed_at_once(
    dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a cosine is the limit to the last bit, which no float32 tells."""
    monkeypatch.setattr(neighbours, "ROWS", 16)
    drawn = uniform(3, range(120), dimension)
    candidates = np.concatenate([drawn, drawn[::7], drawn[:9]])
    pairs = np.triu_indices(len(drawn), 1)
    wide = drawn.astype(np.float64)
    cosines = np.array([wide[a] @ wide[b] for a, b in zip(*pairs, strict=True)])
    limits = np.quantile(cosines, np.linspace(0.5, 1.0, 60), method="nearest")
    for kept in (0, 30):
        for limit in limits:
            expected = [row - kept for row in brute_force(candidates, float(limit), kept)]
            found = identities.apart(candidates[kept:], candidates[:kept], float(limit))
            assert found.tolist() == expected


def test_nothing_is_closer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "packed", None)  # no cosine is computed
    candidates = uniform(1, range(20), 8)
    candidates[7, 3] = np.nan
    kept = identities.apart(candidates, candidates[:2], 1.0)
    assert kept.tolist() == [row for row in range(20) if row != 7]


def test_a_candidate_that_is_no_number_is_dropped_and_near_to_none() -> None:
    candidates = uniform(1, range(40), 8)
    candidates[5] = np.nan
    finite = [row for row in range(40) if row != 5]
    expected = [finite[row] for row in brute_force(candidates[finite], 0.5)]
    empty = np.zeros((0, 8), np.float32)
    assert identities.apart(candidates, empty, 0.5).tolist() == expected


def test_a_longer_bank_begins_with_the_shorter_one() -> None:
    candidates = uniform(1, range(400), 12)
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
    candidates = uniform(1, range(100), 6)
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
