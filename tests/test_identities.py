"""The identity bank against brute force and the statistics of the sphere."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import identities
from factory.recipe import InputError
from factory.shards.store import Store


def test_uniform_contexts_are_unit_spread_and_keyed_by_position() -> None:
    drawn = identities.uniform(5, range(2000), 64)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)
    cosines = (drawn @ drawn.T)[np.triu_indices(2000, 1)]
    assert abs(cosines.mean()) < 2e-3  # uniform on the sphere: mean 0, variance 1/D
    assert cosines.std() == pytest.approx(1 / 8, rel=0.02)
    np.testing.assert_array_equal(identities.uniform(5, [1999, 7], 64), drawn[[1999, 7]])
    assert not np.allclose(identities.uniform(6, [7], 64), drawn[7])


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
    assert identities.pack(candidates, empty, max_cosine).kept.tolist() == expected
    first = identities.pack(candidates[:split], empty, max_cosine).kept
    second = identities.pack(candidates[split:], candidates[first], max_cosine).kept
    assert first.tolist() + (second + split).tolist() == expected


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
