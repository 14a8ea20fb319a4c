"""How trials look at recognizers: when, on which pairs, and without changing the training."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg
import torch
from faces import face, make_pool
from torch.nn import functional

from factory.datasets.compose import compose
from factory.datasets.manifest import MANIFEST
from factory.datasets.scratch import STALE_SECONDS
from factory.datasets.store import LOCK, Store
from factory.evaluation.verification import Pairs, read_bin, verify, write_bin
from factory.recipe import FaultError, FRRecipe, InputError, parse, with_precision
from factory.recognition.backbones import make_backbone
from factory.search import Choice, Space, trial
from factory.search.pools import Pools, held
from factory.search.trial import ACCURACY, ENDED, LAST, Judged, Objective, _told, composed, subset
from factory.training.output import RECORD, claim
from factory.training.recognition import run
from factory.training.workers import Worker


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


class Clock:
    """Time that passes when somebody sleeps; `then` is what happens meanwhile."""

    def __init__(self, monkeypatch, then=lambda now: None):
        self.now, self.then = 1e6, then
        for module in ("search.pools", "datasets.store"):
            monkeypatch.setattr(f"factory.{module}.time", self)

    def time(self):
        return self.now

    monotonic = time

    def sleep(self, seconds):
        self.now += seconds
        self.then(self.now)


def foreign(store, now):
    lock = {"owner": "sweep", "host": "elsewhere", "pid": 1, "token": "t", "time": now}
    store.write(LOCK, json.dumps(lock).encode())


def test_a_store_is_held_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr("factory.search.pools.ORPHAN_SEC", 0.0)
    refused = pytest.raises(InputError, match="is being written by sweep")
    with held(Store(tmp_path)), refused, held(Store(tmp_path)):
        pass
    with held(Store(tmp_path)):
        pass


def test_what_a_lost_node_held_is_free_again_once_its_lock_is_stale(tmp_path, monkeypatch):
    store, clock = Store(tmp_path), Clock(monkeypatch)
    start = clock.now
    foreign(store, start)
    with held(store):
        assert clock.now - start > STALE_SECONDS
        assert json.loads(store.read(LOCK))["host"] != "elsewhere"


def test_a_pool_that_another_sweep_makes_is_waited_for(tmp_path, monkeypatch, made_dataset):
    url = tmp_path / "pool"
    store, anyone = Store(url), SimpleNamespace()
    monkeypatch.setattr("factory.generation.run.check_sources", lambda recipe: None)
    monkeypatch.setattr(
        "factory.generation.run.fill", lambda *given: pytest.fail("it was made twice")
    )

    def elsewhere(now):
        if now < start + 300:
            foreign(store, now // 10 * 10)  # it lives: a beat every 10 s
        elif not store.exists(MANIFEST):
            made_dataset(url)
            store.delete(LOCK)

    start = Clock(monkeypatch, elsewhere).now
    foreign(store, start)
    found = Pools.make(anyone, anyone, str(url))  # neither its actor nor its recipe is looked at
    assert (found["made"], found["images"]) == (False, 23)
    assert found["seconds"] >= 300


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Let trials do in this process what they would give to Ray."""
    monkeypatch.setattr(
        "factory.search.trial._elsewhere", lambda work, env, *given: (0.0, work(*given))
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("asked", "ended", "why"),
    [
        ({"identities": 9}, "refused", "9, but only 3 qualify"),
        ({"url": "elsewhere"}, "failed", "no finished dataset there"),  # it may be there tomorrow
    ],
)
def test_only_what_no_retry_would_mend_is_refused(tmp_path, monkeypatch, here, asked, ended, why):
    view = {"url": make_pool(tmp_path / "pool", 3, 2)} | asked
    fr = str(Path(__file__).parents[2] / "jobs/recipes/desk/fr/desk.yaml")
    searched = Space("s", "?", {"x": Choice(1)}, lambda point: {"pools": {"a": view}}, fr)
    trial = json.dumps(searched.trial(0, {"x": 1}, "pools").as_dict())
    Store(tmp_path / "out").write("trials/0000/trial.json", trial.encode())
    said = []
    monkeypatch.setattr("ray.tune.report", said.append)
    Objective(str(tmp_path / "out"), str(tmp_path), None, (1,), Judged(1, 9), {})({"number": 0})
    assert len(said) == 1 and said[0][ENDED] == ended and why in said[0]["why"]


def test_a_pool_that_two_views_take_of_costs_once(tmp_path):
    one, other = (make_pool(tmp_path / n, 6, 4, world=w) for n, w in (("one", 0), ("other", 1)))
    views = {
        "near": {"url": one, "identities": 4, "images_each": 3},  # 12 images
        "more": {"url": one, "identities_of": "near", "images_each": 4},  # the same, and 4 others
        "rest": {"url": other, "identities": 5, "images_each": 2},
    }
    folder = Store(tmp_path / "made")
    made = compose(parse({"kind": "compose", "name": "c", "seed": 1, "pools": views}), folder)
    pools = {one: {"actor_seconds": 48.0, "images": 24}, other: {"actor_seconds": 6, "images": 24}}
    found = composed(folder, made, pools)
    assert (found["images"], found["images_with_repeats"]) == (16 + 10, 12 + 16 + 10)
    assert found["generation_seconds"] == 16 * 2.0 + 10 * 0.25


def bins(folder):
    folder.mkdir()
    images, same = [], []
    for n in range(20):
        for shown in (face(n, 0, 32), face(n if n % 2 else n + 40, 1, 32)):
            images.append(simplejpeg.encode_jpeg(shown))
        same.append(bool(n % 2))
    write_bin(folder / "blobs.bin", images, same)
    return str(folder)


@pytest.fixture
def tiny(tmp_path):
    """A recipe of six steps on eight people."""
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
    return recipe


def test_looking_on_changes_no_training(tmp_path, tiny):
    made = {}
    for name, watch in (("plain", None), ("watched", Judged(3, 10))):
        store = Store(tmp_path / name)
        claim(store, tiny)
        made[name] = run(tiny, store, watch=watch)
    weights = [
        hashlib.sha256((tmp_path / name / "model.pt").read_bytes()).hexdigest() for name in made
    ]
    assert weights[0] == weights[1]
    seen = [row for row in made["watched"]["curve"] if ACCURACY in row]
    assert [(row["step"], row[LAST]) for row in seen] == [(2, 0.0), (4, 0.0), (6, 1.0)]
    assert all(0 <= row[f"{ACCURACY}.blobs"] == row[ACCURACY] <= 1 for row in seen)
    whole = len(read_bin(tmp_path / "bins/blobs.bin").same)
    assert [row["pairs.blobs"] for row in seen] == [10, 10, whole] and whole > 10

    # Killed after the last checkpoint and before the record, it tells its rows all the same.
    store, told = Store(tmp_path / "watched"), []
    store.delete(RECORD)
    worker = Worker(note=lambda line, rows, pictures: told.extend(rows))
    assert run(tiny, store, worker, watch=Judged(3, 10))["curve"] == made["watched"]["curve"]
    assert told == made["watched"]["curve"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_recognizer_is_looked_at_in_its_trainings_precision(tiny, monkeypatch, precision):
    seen = []

    def watched(recognizer, benchmark):
        seen.append(recognizer.embed(images))
        return verify(recognizer, benchmark)

    images = np.stack([face(n, 0, 32) for n in range(8)])

    torch.manual_seed(0)
    network = make_backbone(tiny.backbone, tiny.image.size).eval()
    monkeypatch.setattr("factory.evaluation.verification.verify", watched)
    recipe = with_precision(
        tiny.model_copy(update={"engine": tiny.engine.model_copy(update={"precision": "auto"})}),
        precision,
    )
    look = Judged(1, 4).look(recipe, network.state_dict(), True)
    assert 0 <= look[ACCURACY] <= 1 and look[LAST] == 1
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        exact = functional.normalize(network(pixels)).numpy()
    found = functional.normalize(torch.from_numpy(seen[0])).numpy()
    error = np.abs(found - exact).max()
    assert error < 1e-5 if precision == "float32" else 1e-4 < error < 2e-2


def test_a_training_without_its_last_report_is_a_fault(tmp_path, monkeypatch, here):
    view = {"url": make_pool(tmp_path / "pool", 3, 2)}
    fr = str(Path(__file__).parents[2] / "jobs/recipes/desk/fr/desk.yaml")
    searched = Space("s", "?", {"x": Choice(1)}, lambda point: {"pools": {"a": view}}, fr)
    row = {ACCURACY: 0.5, LAST: 0.0, "step": 3.0, "loss": 1.0}
    monkeypatch.setattr("factory.search.trial.trained", lambda *given: iter([row]))
    watch, out = Judged(2, 9), str(tmp_path / "out")
    reports = Objective(out, str(tmp_path), None, (1,), watch, {}).reports(
        searched.trial(0, {"x": 1}, "pools"), out
    )
    assert not next(reports)["complete"]
    with pytest.raises(FaultError, match="training of seed 1 ended without its last report"):
        next(reports)


def test_a_trial_lies_below_its_sweep_whatever_the_query(monkeypatch):
    class Asked(Exception):
        pass

    def opened(url):
        raise Asked(url)

    monkeypatch.setattr(trial, "Store", opened)
    asked = Objective("s3://b/sweep?endpoint_override=h:9000", "", None, (1,), Judged(1, 1), {})
    with pytest.raises(Asked, match=r"s3://b/sweep/trials/0007\?endpoint_override=h:9000$"):
        asked({"number": 7})
