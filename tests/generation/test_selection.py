"""Choosing identities: each step against brute force."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faces import face, make_pool
from irnet import IRNet

from factory.datasets.images import contents_digest
from factory.datasets.provenance import models
from factory.datasets.store import Store
from factory.generation import selection
from factory.generation.selection import Beholder, Seen, select
from factory.recipe import BankRecipe, FaultError, GenerateRecipe, InputError, load, parse

COUNT, SIZE = 300, 6
PLAIN = Path(__file__).parents[2] / "jobs/recipes/desk/generate/studio_plain.yaml"


def recipe(**changes: Any) -> BankRecipe:
    raw = {
        "kind": "bank",
        "name": "small",
        "seed": 4,
        "licence": "CC0-1.0",
        "candidates": {"url": "here", "digest": "0" * 16},
        "weights": {"recognizer": {"location": "r"}, "attributes": {"location": "a"}},
        "max_cosine": 0.7,
        "workers": {"max": 1},
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
    for draw in ({}, {"draw": "random"}, {"draw": "balanced", "groups": {"gender": [0.5]}}):
        with pytest.raises(FaultError, match="fewer than count, 1"):  # all are too similar
            select(recipe(max_cosine=-1.0, **draw), seen)
    with pytest.raises(InputError, match=r"rules\.0\.attribute: 'beard'; accepted: glasses"):
        select(recipe(rules=[{"attribute": "beard"}]), seen)
    with pytest.raises(InputError, match="groups: 'beard'; accepted: glasses, gender"):
        select(recipe(draw="balanced", groups={"beard": [0.5]}), seen)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"candidates": None}, "candidates, generate: exactly one of the two must"),
        ({"weights": {}}, r"weights\.recognizer is missing"),
        (
            {"weights": {"recognizer": {"location": "r"}}, "rules": [{"attribute": "age"}]},
            r"weights\.attributes is missing",
        ),
        ({"draw": "balanced"}, "balanced needs groups, no other"),
        ({"groups": {"gender": [0.5]}}, "balanced needs groups, no other"),
        ({"candidates": {"url": "here", "digest": "x"}}, r"candidates\.digest"),
    ],
)
def test_a_bank_recipe_that_contradicts_itself_is_refused(changes: dict[str, Any], named: str):
    with pytest.raises(InputError, match=named):
        recipe(**changes)


def test_candidates_are_seen_by_a_checkpoint_of_adaface(tmp_path: Path):
    torch.manual_seed(1)
    network, path = IRNet((2, 2, 2, 2), 32).eval(), tmp_path / "adaface_ir18_casia.ckpt"
    torch.save(network.state_dict(), path)
    url = make_pool(tmp_path / "faces", 3, 1, size=32)
    named = {"url": url, "digest": contents_digest(Store(url))}
    weights = {"recognizer": {"location": f"adaface:{path}?channels=bgr", "licence": "own"}}
    made = recipe(candidates=named, weights=weights)
    assert models(made.weights)[0].licence == "own AND unknown"  # the catalog knows of none
    beholder = Beholder((made.model_dump(mode="json"), named, 32))
    found = beholder({"start": np.array([0])})["embeddings"][0]
    images = beholder.bank.images(range(3))
    assert np.abs(images[1].astype(int) - face(1, 0)).mean() < 8  # JPEG
    with torch.no_grad():
        bgr = torch.from_numpy(images[..., ::-1].copy()).permute(0, 3, 1, 2) / 127.5 - 1
        unit, length = network(bgr)
    np.testing.assert_allclose(found, (unit * length).numpy(), rtol=1e-3, atol=1e-3)


def test_candidates_lie_beside_the_bank_whatever_its_query(monkeypatch):
    opened = []

    class Opened:
        def __init__(self, url: str) -> None:
            opened.append(url)
            self.url = url

        def lock(self, owner: str):
            return nullcontext()

        def exists(self, name: str) -> bool:
            return False

        def list(self, folder: str = "") -> tuple[str, ...]:
            return ()

    monkeypatch.setattr(selection, "Store", Opened)
    monkeypatch.setattr(selection, "check_sources", lambda recipe: None)
    monkeypatch.setattr(selection, "fill", lambda *given, **named: None)
    monkeypatch.setattr(selection, "contents_digest", lambda store: "0" * 16)
    generated = load(PLAIN)
    assert isinstance(generated, GenerateRecipe)
    asked = recipe().model_copy(update={"generate": generated})
    for out in ("s3://b/bank?endpoint_override=h:9000", "s3://b/bank/?endpoint_override=h:9000"):
        made = selection._generated(asked, out, print)
        assert made.url == opened[-1] == "s3://b/bank-candidates?endpoint_override=h:9000"
