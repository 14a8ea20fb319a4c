"""One shard through the stages, with a system whose images say what they are."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from factory.generation.assign import Identities
from factory.generation.render import Render
from factory.generation.styles import Styles

from factory.datasets.manifest import load_shard_manifest
from factory.datasets.store import Store
from factory.datasets.tar import read_tar
from factory.generation.commit import Commit
from factory.generation.screen import Screen, known_faces
from factory.generation.work import KEEP, ShardWork
from factory.plan import Shard
from factory.recipe import GenerateRecipe, parse
from factory.systems.base import Conditions, Position, Rendered, System

SIZE = 16


def recipe(**screens) -> GenerateRecipe:
    made = parse(
        {
            "kind": "generate",
            "name": "toy",
            "seed": 3,
            "system": "toy",
            "licence": "CC0-1.0",
            "image": {"size": SIZE, "format": "png"},
            "identities": {"count": 4, "images_each": 3, "source": "toy"},
            "shard": {"identities": 2},
            "workers": {"max": 1},
            "cost": {"seconds_per_image": [0, 1], "source": "test"},
            "sampler": {"name": "ddim", "steps": 1, "batch_size": 4, "dtype": "float32"},
            "screens": screens,
            "weights": {"teacher": {"location": __file__}},  # what screens ask of it is in Teacher
        }
    )
    assert isinstance(made, GenerateRecipe)
    return made


class Toy(System):
    """Images whose first pixel holds (identity, slot, attempt)."""

    name = "toy"
    sources = ("toy",)

    def __init__(self, recipe: GenerateRecipe) -> None:
        super().__init__(recipe)
        self.batches: list[int] = []

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[[i % 8 for i in indices]]

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        return Conditions(contexts, np.ones(len(positions), np.float32))

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        self.batches.append(len(positions))
        images = np.zeros((len(positions), SIZE, SIZE, 3), np.uint8)
        for image, p in zip(images, positions, strict=True):
            image[0, 0] = p.identity, p.slot, p.attempt
        return Rendered(images, [{"n": p.slot} for p in positions])


class Teacher:
    """Sees the identity of a toy image, except where slot 1 is at its first `bad` attempts."""

    size = SIZE

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def embed(self, images: np.ndarray) -> np.ndarray:
        out = np.zeros((len(images), 8), np.float32)
        for row, (identity, slot, attempt) in enumerate(images[:, 0, 0]):
            wrong = slot == 1 and attempt < self.bad
            out[row, (identity + wrong) % 8] = 5.0
            out[row, 7] = 0.1 * slot + 0.01 * attempt
        return out


def through(made: GenerateRecipe, teacher: Teacher | None, folder: Path, attempts: int):
    system, store, faces = Toy(made), Store(str(folder)), known_faces(made)
    work = Identities(system, None)(ShardWork(Shard(2, 4, 0, 3)))
    for attempt in range(attempts):
        for stage in (Styles(system, attempt), Render(system), Screen(system, teacher, faces)):
            work = stage(work)
    verdicts = [(s.position.slot, s.position.attempt, s.verdict) for s in work.samples]
    Commit(made, store, "digest", {})(work)
    name = Shard(2, 4, 0, 3).name
    return system, store, load_shard_manifest(store, name), verdicts


def test_rejected_slots_are_refilled_by_the_next_attempt(tmp_path: Path) -> None:
    made = recipe(identity_drift={"tolerance": 0.5})
    system, store, manifest, _ = through(made, Teacher(bad=1), tmp_path, attempts=3)
    assert manifest.kept == 6 and manifest.missing == ()
    assert manifest.reasons == {"identity_drift": 2}
    assert system.batches == [4, 2, 2], "six slots in batches of four, then the two refills"
    members = dict(read_tar(store.read(f"shards/{manifest.name}.tar")))
    sidecar = json.loads(members["0000002_0001"]["json"])
    assert sidecar["attempt"] == 1 and sidecar["cosine"] > 0.9 and sidecar["identity"] == 2
    assert members["0000003_0002"]["cls"] == b"3"
    (tmp_path / "r.parquet").write_bytes(store.read(f"shards/{manifest.name}.rejects.parquet"))
    rejects = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [(r["key"], r["attempt"], r["reason"]) for r in rejects] == [
        ("0000002_0001", 0, "identity_drift"),
        ("0000003_0001", 0, "identity_drift"),
    ]


def test_what_stays_missing_is_said_in_the_manifest(tmp_path: Path) -> None:
    made = recipe(identity_drift={"tolerance": 0.5})
    *_, manifest, _ = through(made, Teacher(bad=9), tmp_path, attempts=2)
    assert manifest.kept == 4 and manifest.missing == ("0000002_0001", "0000003_0001")
    assert manifest.reasons == {"identity_drift": 4}


def test_near_duplicates_of_a_kept_image_are_rejected(tmp_path: Path) -> None:
    # embeddings (5, 0.1 slot): slots 0 and 1 stand at cosine 0.9998, slots 0 and 2 at 0.9992
    made = recipe(near_duplicate={"max_cosine": 0.9995})
    *_, manifest, verdicts = through(made, Teacher(bad=0), tmp_path, attempts=1)
    assert [verdict for *_, verdict in verdicts] == [KEEP, "near_duplicate", KEEP] * 2
    assert manifest.reasons == {"near_duplicate": 2}


def test_a_nan_embedding_is_a_drift(tmp_path: Path) -> None:
    class Broken(Teacher):
        def embed(self, images: np.ndarray) -> np.ndarray:
            return np.full((len(images), 8), np.nan, np.float32)

    made = recipe(identity_drift={"tolerance": 0.5})
    *_, manifest, _ = through(made, Broken(0), tmp_path, attempts=1)
    assert manifest.kept == 0 and manifest.reasons == {"identity_drift": 6}


class Sighted(Teacher):
    """Sees identity, slot and attempt, each in a direction of its own."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        out = super().embed(images)
        for row, (_, slot, attempt) in enumerate(images[:, 0, 0]):
            out[row, 4 + slot] += 2.0 * (attempt + 1)
        return out


def looks_like(folder: Path, image: tuple[int, int, int], cosine: float) -> dict:
    """Return the rule that refuses what comes as near as `cosine` to a toy image."""
    pixels = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    pixels[0, 0, 0] = image
    np.save(folder / "real.npy", np.concatenate([np.eye(8)[:1], Sighted(0).embed(pixels)]))
    sha256 = hashlib.sha256((folder / "real.npy").read_bytes()).hexdigest()
    embeddings = {"location": str(folder / "real.npy"), "sha256": sha256}
    return {"max_cosine": cosine, "embeddings": embeddings}


def test_an_image_that_looks_like_a_known_face_is_rejected(tmp_path: Path) -> None:
    rule = looks_like(tmp_path, (3, 1, 0), 0.999)
    made = recipe(real_lookalike=rule, near_duplicate={"max_cosine": 1.0})
    *_, manifest, verdicts = through(made, Sighted(0), tmp_path, attempts=2)
    assert manifest.kept == 6 and manifest.reasons == {"real_lookalike": 1}
    assert [v for v in verdicts if v[2] != KEEP] == [(1, 0, "real_lookalike")]
    rejects = pq.read_table(tmp_path / f"shards/{manifest.name}.rejects.parquet").to_pylist()
    assert [(r["key"], r["reason"]) for r in rejects] == [("0000003_0001", "real_lookalike")]
    assert rejects[0]["score"] == pytest.approx(1.0, abs=1e-6)


def test_what_cannot_be_compared_with_known_faces_is_rejected(tmp_path: Path) -> None:
    class Broken(Teacher):
        def embed(self, images: np.ndarray) -> np.ndarray:
            return super().embed(images) * np.where(images[:, 0, 0, 1:2] == 2, np.nan, 1.0)

    made = recipe(real_lookalike=looks_like(tmp_path, (0, 0, 0), 0.9))
    *_, manifest, _ = through(made, Broken(0), tmp_path, attempts=1)
    assert manifest.kept == 4 and manifest.reasons == {"real_lookalike": 2}


@pytest.mark.parametrize("attempts", [1, 2])
def test_equal_work_has_equal_bytes(tmp_path: Path, attempts: int) -> None:
    made = recipe()
    shas = {through(made, None, tmp_path / str(n), attempts)[2].sha256 for n in range(2)}
    assert len(shas) == 1
