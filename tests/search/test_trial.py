"""How trials look at recognizers: when, on which pairs, and without changing the training."""

import hashlib

import numpy as np
import pytest
import simplejpeg
from faces import face, make_pool

from factory.evaluation.verification import Pairs, write_bin
from factory.recipe import FRRecipe, InputError, parse
from factory.search.trial import ACCURACY, LAST, Judged, _told, held, subset
from factory.shards.store import Store
from factory.training.output import claim
from factory.training.recognition import run


def test_a_training_reports_as_often_as_asked_and_at_its_end():
    for total, reports, steps in ((400, 4, [100, 200, 300, 400]), (10, 3, [4, 8, 10]),
                                  (5, 9, [1, 2, 3, 4, 5]), (7, 1, [7])):  # fmt: skip
        judged = Judged(reports, 10)
        assert [step for step in range(1, total + 1) if judged.due(step, total)] == steps


def test_a_subset_is_balanced_and_always_the_same():
    same = np.array([True] * 40 + [False] * 60)
    images = tuple(b"%d" % n for n in range(200))
    found = subset(Pairs("x", images, same), 20)
    assert found.same.sum() == 10 and len(found.same) == 20
    pairs = [(int(a), int(b)) for a, b in zip(found.images[::2], found.images[1::2], strict=True)]
    assert all(b == a + 1 and a % 2 == 0 for a, b in pairs)
    assert [same[a // 2] for a, _ in pairs] == found.same.tolist()
    assert subset(Pairs("x", images, same), 20).images == found.images
    assert subset(Pairs("y", images, same), 20).images != found.images
    assert len(subset(Pairs("x", images, same), 1000).same) == 100


def test_rows_that_were_looked_at_come_through_and_errors_too():
    def train(tell):
        tell({"step": 1})
        tell({"step": 2, ACCURACY: 0.5})
        raise InputError("not so")

    rows = _told(train)
    assert next(rows) == {"step": 2, ACCURACY: 0.5}
    with pytest.raises(InputError, match="not so"):
        next(rows)


def test_a_store_is_held_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("factory.search.trial.ORPHAN_SEC", 0.0)
    refused = pytest.raises(InputError, match="is being written by sweep")
    with held(Store(tmp_path)), refused, held(Store(tmp_path)):
        pass
    with held(Store(tmp_path)):
        pass


def bins(folder):
    folder.mkdir()
    images, same = [], []
    for n in range(20):
        for shown in (face(n, 0, 32), face(n if n % 2 else n + 40, 1, 32)):
            images.append(simplejpeg.encode_jpeg(shown))
        same.append(bool(n % 2))
    write_bin(folder / "blobs.bin", images, same)
    return str(folder)


def test_looking_on_changes_no_training(tmp_path):
    recipe = parse(
        {
            "kind": "fr",
            "name": "tiny",
            "seed": 3,
            "licence": "CC0-1.0",
            "image": {"size": 32},
            "data": {"train": make_pool(tmp_path / "pool", 8, 4)},
            "backbone": {
                "name": "iresnet",
                "widths": [8, 8, 8, 8],
                "depths": [1, 1, 1, 1],
                "embedding_size": 16,
            },
            "head": {"name": "cosface", "scale": 16, "margin": 0.2},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"steps": 6, "batch_size": 8},
            "engine": {"name": "torch", "precision": "float32"},
            "checkpoint": {"every_steps": 100},
            "benchmarks": bins(tmp_path / "bins"),
        }
    )
    assert isinstance(recipe, FRRecipe)
    made = {}
    for name, watch in (("plain", None), ("watched", Judged(3, 10))):
        store = Store(tmp_path / name)
        claim(store, recipe)
        made[name] = run(recipe, store, watch=watch)
    weights = [
        hashlib.sha256((tmp_path / name / "model.pt").read_bytes()).hexdigest() for name in made
    ]
    assert weights[0] == weights[1]
    seen = [row for row in made["watched"]["curve"] if ACCURACY in row]
    assert [(row["step"], row[LAST]) for row in seen] == [(2, 0.0), (4, 0.0), (6, 1.0)]
    assert all(0 <= row[f"{ACCURACY}.blobs"] == row[ACCURACY] <= 1 for row in seen)
