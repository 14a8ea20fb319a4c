"""The identity bank against brute force."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.datasets.store import Store
from factory.generation import identities
from factory.recipe import InputError
from factory.systems.contexts import uniform


def brute_force(candidates: np.ndarray, max_cosine: float) -> list[int]:
    kept: list[int] = []
    for row in range(len(candidates)):
        if all(float(candidates[row] @ candidates[other]) <= max_cosine for other in kept):
            kept.append(row)
    return kept


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(-0.2, 0.9), st.integers(1, 40))
def test_packing_is_greedy_in_order(root: int, max_cosine: float, split: int) -> None:
    candidates = uniform(root, range(60), 4)
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
    drawn = uniform(3, range(120), dimension)
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
    candidates = uniform(1, range(20), 8)
    candidates[7, 3] = np.nan
    kept = identities.pack(candidates, candidates[:2], 1.0)
    assert kept.tolist() == [row for row in range(20) if row != 7]


def test_a_candidate_that_is_no_number_is_near_to_all() -> None:
    candidates = uniform(1, range(40), 8)
    candidates[5] = np.nan
    empty = np.zeros((0, 8), np.float32)
    assert identities.pack(candidates, empty, 0.5).tolist() == one_by_one(candidates, empty, 0.5)


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
