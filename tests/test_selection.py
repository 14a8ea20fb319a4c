"""Choosing identities: each step against brute force."""

from typing import Any

import numpy as np
import pytest

from factory.cli import FaultError
from factory.recipe import BankRecipe, InputError, parse
from factory.selection import Seen, select

COUNT, SIZE = 300, 6


def recipe(**changes: Any) -> BankRecipe:
    raw = {
        "kind": "bank",
        "name": "small",
        "seed": 4,
        "licence": "CC0-1.0",
        "candidates": {"url": "here", "digest": "0" * 16},
        "weights": {"recognizer": {"location": "r"}, "attributes": {"location": "a"}},
        "max_cosine": 0.7,
        "pool": {"size": 1},
    }
    made = parse(raw | changes)
    assert isinstance(made, BankRecipe)
    return made


@pytest.fixture
def seen() -> Seen:
    """Candidates all over the sphere, of any length, some of them near to known faces."""
    draws = np.random.default_rng(1)
    return Seen(
        draws.normal(size=(COUNT, SIZE)).astype(np.float32) * 3,
        draws.uniform(-0.5, 0.9, COUNT),
        {
            "glasses": draws.uniform(0, 1, COUNT).astype(np.float32),
            "gender": (draws.uniform(0, 1, COUNT) ** 3).astype(np.float32),
        },
    )


def greedy(seen: Seen, rows: np.ndarray, r: float) -> list[int]:
    unit = seen.embeddings / np.linalg.norm(seen.embeddings, axis=1, keepdims=True)
    kept: list[int] = []
    for row in rows:
        if all(float(unit[row] @ unit[other]) < r for other in kept):
            kept.append(int(row))
    return kept


def test_every_step_is_what_brute_force_leaves(seen: Seen):
    made = recipe(rules=[{"attribute": "glasses", "high": 0.8}])
    chosen = select(made, seen)
    rows = np.flatnonzero(seen.attributes["glasses"] <= 0.8)
    near = rows[seen.known[rows] < 0.7]
    kept = greedy(seen, near, 0.7)
    assert chosen.rows.tolist() == kept
    assert chosen.counts == {
        "candidates": COUNT,
        "attributes": len(rows),
        "known": len(near),
        "unique": len(kept),
        "drawn": len(kept),
    }
    assert COUNT > len(rows) > len(near) > len(kept)


def test_ranges_include_their_ends(seen: Seen):
    value = float(seen.attributes["gender"][7])
    rule = {"attribute": "gender", "low": value, "high": value}
    assert select(recipe(rules=[rule], max_cosine=1.0), seen).rows.tolist() == [7]


def test_first_is_a_prefix_and_random_a_draw_by_the_seed(seen: Seen):
    every = select(recipe(), seen).rows
    assert select(recipe(count=9), seen).rows.tolist() == every[:9].tolist()
    drawn = [select(recipe(count=9, draw="random", seed=seed), seen).rows for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert set(drawn[0]) != set(drawn[2])
    assert set(drawn[0]) <= set(every) and (np.diff(drawn[0]) > 0).all()


def test_balanced_takes_as_many_of_each_group(seen: Seen):
    groups = {"gender": [0.5], "glasses": [0.5]}
    chosen = select(recipe(count=12, draw="balanced", groups=groups), seen).rows
    sides = [(seen.attributes[name][chosen] > 0.5).astype(int) for name in groups]
    assert np.bincount(2 * sides[0] + sides[1]).tolist() == [3, 3, 3, 3]
    every = select(recipe(), seen).rows
    men = int((seen.attributes["gender"][every] > 0.5).sum())
    chosen = select(recipe(count=len(every), draw="balanced", groups={"gender": [0.5]}), seen).rows
    assert int((seen.attributes["gender"][chosen] > 0.5).sum()) == men  # a group that runs out


def test_too_few_and_unknown_attributes_are_named(seen: Seen):
    with pytest.raises(FaultError, match=r"unique \d+: fewer than count, 300"):
        select(recipe(count=300), seen)
    with pytest.raises(InputError, match=r"rules\.0\.attribute: 'beard'; accepted: glasses"):
        select(recipe(rules=[{"attribute": "beard"}]), seen)
    with pytest.raises(InputError, match="groups: 'beard'; accepted: glasses, gender"):
        select(recipe(draw="balanced", groups={"beard": [0.5]}), seen)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"candidates": None}, "exactly one of candidates and generate"),
        ({"weights": {}}, r"weights\.recognizer is missing"),
        (
            {"weights": {"recognizer": {"location": "r"}}, "rules": [{"attribute": "age"}]},
            r"weights\.attributes is missing",
        ),
        ({"draw": "balanced"}, "balanced needs both"),
        ({"groups": {"gender": [0.5]}}, "balanced needs both"),
        ({"candidates": {"url": "here", "digest": "x"}}, r"candidates\.digest"),
    ],
)
def test_a_bank_recipe_that_contradicts_itself_is_refused(changes: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        recipe(**changes)
