"""The shipped recipes of the FR teacher and of idiff_face's denoiser, 50 steps on two workers.

Images a step are fewer than the recipes' and precision is float32. In `make test` images and
networks are small as well, and losses, options, schedule and optimizer the recipes' own; in
`make test-slow` nothing else is changed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

from factory.recipe import FRRecipe, TrainRecipe, load
from factory.training import diffusion, recognition
from factory.training.output import claim

RECIPES = Path(__file__).parents[2] / "jobs/recipes/desk"
STEPS = 50
ENGINE = (
    "engine.name=deepspeed",
    "engine.workers=2",
    "engine.num_cpus=1",
    "engine.threads=1",
    "engine.max_failures=0",
    "engine.precision=float32",
    f"schedule.steps={STEPS}",
    "checkpoint.every_steps=25",
)
SMALL = {
    "fr": ("backbone.widths=[8,8,16,16]", "backbone.depths=[1,1,1,1]"),
    "train": (
        "model.latent_size=4",
        "model.widths=[32,32]",
        "model.context_size=8",
        "model.context_channels=32",
    ),
}


@dataclass(frozen=True)
class People:
    """A dataset, and what the recipes are trained on it with."""

    url: str
    sets: dict[str, tuple[str, ...]]
    files: dict[str, str]


def studio(folder: Path, size: int) -> str:
    """Return a dataset of twelve plain studio people with six images each, as generate makes it."""
    from factory.datasets.claim import write_claim
    from factory.datasets.manifest import merge
    from factory.datasets.provenance import versions
    from factory.datasets.store import Store
    from factory.generation.bank import fill_bank
    from factory.generation.commit import Committer
    from factory.generation.make import Maker
    from factory.generation.work import Assignment
    from factory.plan import shards
    from factory.recipe import GenerateRecipe, content_digest
    from factory.systems import create

    sets = ["identities.count=12", "identities.images_each=6", "shard.identities=12"]
    recipe = load(RECIPES / "generate/studio_plain.yaml", [*sets, f"image.size={size}"])
    assert isinstance(recipe, GenerateRecipe)
    store, made_with = Store(folder), versions()
    digest = content_digest(recipe, made_with)
    write_claim(store, recipe, digest, ())
    if create(recipe).banked:
        fill_bank(recipe, store, lambda line: None)
    assignment = Assignment(recipe.model_dump(mode="json"), store, digest, made_with)
    make, commit = Maker(assignment), Committer(assignment)
    for shard in shards(recipe):
        commit(make(shard))
    merge(store, shards(recipe))
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> People:
    folder = tmp_path_factory.mktemp("small")
    files = {name: str(path) for name, path in tiny.save_frozen(folder).items()}
    sets = {kind: (f"image.size={tiny.SIZE}", *more) for kind, more in SMALL.items()}
    return People(studio(folder / "people", tiny.SIZE), sets, files)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> People:
    files = {
        "autoencoder": "package:weights/autoencoder/autoencoder.safetensors",
        "teacher": "package:weights/teacher/recognizer.safetensors",
    }
    url = studio(tmp_path_factory.mktemp("whole") / "people", 64)
    return People(url, {"fr": (), "train": ()}, files)


@pytest.fixture(params=["small", pytest.param("whole", marks=pytest.mark.slow)])
def people(request: pytest.FixtureRequest) -> People:
    return request.getfixturevalue(request.param)


class Rows:
    """Takes the place of an MLflow run."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append(values)

    def artifact(self, path: Path, folder: str) -> None:
        assert path.is_file()


def halves(rows: list[dict[str, float]], name: str = "loss") -> tuple[float, float]:
    values = [row[name] for row in rows]
    assert len(values) == STEPS
    return sum(values[:10]) / 10, sum(values[-10:]) / 10


def fr(people: People, *more: str) -> FRRecipe:
    sets = [*ENGINE, "schedule.batch_size=16", f"data.train={people.url}", *people.sets["fr"]]
    recipe = load(RECIPES / "fr/teacher.yaml", [*sets, *more])
    assert isinstance(recipe, FRRecipe)
    return recipe


def train(people: People, *more: str) -> TrainRecipe:
    sets = [*ENGINE, "schedule.batch_size=8", f"data.train={people.url}", *people.sets["train"]]
    sets += [f"weights.{name}.location={path}" for name, path in people.files.items()]
    recipe = load(RECIPES / "train/idiff_face.yaml", [*sets, *more])
    assert isinstance(recipe, TrainRecipe)
    return recipe


@pytest.mark.ray
def test_the_teachers_recipe_learns(people: People, tmp_path: Path, ray_cluster: None) -> None:
    rows: list[dict[str, float]] = []
    record = recognition.train(fr(people), str(tmp_path), rows.append)
    first, last = halves(rows)
    assert last < first and record["steps"] == STEPS


@pytest.mark.ray
def test_idiff_faces_recipe_learns(people: People, tmp_path: Path, ray_cluster: None) -> None:
    tracked: Any = Rows()
    recipe = train(people, "engine.deepspeed.zero_stage=2")
    summary = diffusion.train(recipe, str(tmp_path / "out"), tracked)
    first, last = halves(tracked.rows, "error")
    assert last < first and summary["steps"] == STEPS
    assert tracked.rows[-1]["cosine"] != 0.0  # the identity loss has joined


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_workers_reach_the_loss_of_one(
    whole: People, tmp_path: Path, ray_cluster: None, stage: int
) -> None:
    """Of the same global batch: denoiser within 1 %, recognizer within 10 %, in float32.

    Batch norms see a worker's part of a batch, so that one worker takes a batch of the recognizer's
    in two parts.
    """
    zero = f"engine.deepspeed.zero_stage={stage}"
    found: dict[str, list[float]] = {"fr": [], "train": []}
    for number, how in enumerate(((zero,), ("engine.name=torch", "engine.workers=1"))):
        tracked: Any = Rows()
        more = how
        diffusion.train(train(whole, *more), str(tmp_path / f"train{number}"), tracked)
        found["train"].append(halves(tracked.rows)[1])
        rows: list[dict[str, float]] = []
        parts = f"engine.deepspeed.accumulation_steps={number + 1}"
        recognition.train(fr(whole, *more, parts), str(tmp_path / f"fr{number}"), rows.append)
        found["fr"].append(halves(rows)[1])
    assert found["train"][0] == pytest.approx(found["train"][1], rel=0.01)
    assert found["fr"][0] == pytest.approx(found["fr"][1], rel=0.10)


@pytest.mark.ray
@pytest.mark.slow
def test_one_worker_goes_on_where_two_stopped(
    whole: People, tmp_path: Path, ray_cluster: None
) -> None:
    from factory.datasets.store import Store

    tracked: Any = Rows()
    store, half = Store(tmp_path / "out"), STEPS // 2
    claim(store, train(whole))
    diffusion.train(train(whole), str(tmp_path / "out"), tracked, half)
    assert [row["step"] for row in tracked.rows] == list(range(1, half + 1))
    alone = train(whole, "engine.name=torch", "engine.workers=1")
    claim(store, alone)
    resumed: Any = Rows()  # it tells of the whole curve, since this driver may be another
    diffusion.train(alone, str(tmp_path / "out"), resumed)
    assert resumed.rows[:half] == tracked.rows
    whole: Any = Rows()
    diffusion.train(train(whole), str(tmp_path / "whole"), whole)
    ours, theirs = halves(resumed.rows), halves(whole.rows)
    assert ours == pytest.approx(theirs, rel=0.01)
