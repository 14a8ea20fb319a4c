"""Verdicts on images that say what they are."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import SIZE, Sighted, Teacher, made, recipe, written

from factory.generation.screen import screens_anything
from factory.generation.work import KEEP, ShardWork
from factory.recipe import Screens

DRIFT = {"identity_drift": {"tolerance": 0.5}}


def verdicts(work: ShardWork) -> list[str]:
    return [sample.verdict for sample in work.samples]


def test_an_image_far_from_its_context_is_a_drift(tmp_path: Path) -> None:
    work = made(recipe(**DRIFT), Teacher(bad=1), tmp_path)
    assert verdicts(work) == [KEEP, "identity_drift", KEEP] * 2
    assert [s.score for s in work.samples if s.verdict != KEEP] == pytest.approx([1.0, 1.0])
    assert all(s.score == s.cosine > 0.9 for s in work.kept().values())


def test_near_duplicates_of_a_kept_image_are_rejected(tmp_path: Path) -> None:
    # embeddings (5, 0.1 slot): slots 0 and 1 stand at cosine 0.9998, slots 0 and 2 at 0.9992
    work = made(recipe(near_duplicate={"max_cosine": 0.9995}), Teacher(), tmp_path)
    assert verdicts(work) == [KEEP, "near_duplicate", KEEP] * 2


def test_an_image_of_an_earlier_attempt_counts_as_kept(tmp_path: Path) -> None:
    """Slot 1 drifts at first; made again, it is too near to slot 0 of the first attempt."""
    made_of = recipe(attempts=2, near_duplicate={"max_cosine": 0.9995}, **DRIFT)
    work = made(made_of, Teacher(bad=1), tmp_path)
    assert verdicts(work)[6:] == ["near_duplicate"] * 2
    assert [slot for _, slot in work.missing()] == [1, 1]


def test_a_nan_embedding_is_a_drift(tmp_path: Path) -> None:
    class Broken(Teacher):
        def embed(self, images: np.ndarray) -> np.ndarray:
            return np.full((len(images), 8), np.nan, np.float32)

    work = made(recipe(**DRIFT), Broken(), tmp_path)
    assert verdicts(work) == ["identity_drift"] * 6
    manifest = written(recipe(**DRIFT), work, tmp_path)
    assert manifest.kept == 0 and manifest.reasons == {"identity_drift": 6}


def looks_like(folder: Path, image: tuple[int, int, int], cosine: float) -> dict[str, Any]:
    """Return the rule that refuses what comes as near as `cosine` to a toy image."""
    pixels = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    pixels[0, 0, 0] = image
    np.save(folder / "real.npy", np.concatenate([np.eye(8)[:1], Sighted().embed(pixels)]))
    sha256 = hashlib.sha256((folder / "real.npy").read_bytes()).hexdigest()
    embeddings = {"location": str(folder / "real.npy"), "sha256": sha256}
    return {"max_cosine": cosine, "embeddings": embeddings}


def test_an_image_that_looks_like_a_known_face_is_rejected(tmp_path: Path) -> None:
    rule = looks_like(tmp_path, (3, 1, 0), 0.999)
    made_of = recipe(attempts=2, real_lookalike=rule, near_duplicate={"max_cosine": 1.0})
    work = made(made_of, Sighted(), tmp_path)
    assert work.missing() == []
    (rejected,) = (sample for sample in work.samples if sample.verdict != KEEP)
    position = rejected.position
    assert (position.identity, position.slot, position.attempt) == (3, 1, 0)
    assert rejected.verdict == "real_lookalike"
    assert rejected.score == pytest.approx(1.0, abs=1e-6)


def test_what_cannot_be_compared_with_known_faces_is_rejected(tmp_path: Path) -> None:
    class Broken(Teacher):
        def embed(self, images: np.ndarray) -> np.ndarray:
            return super().embed(images) * np.where(images[:, 0, 0, 1:2] == 2, np.nan, 1.0)

    made_of = recipe(real_lookalike=looks_like(tmp_path, (0, 0, 0), 0.9))
    assert verdicts(made(made_of, Broken(), tmp_path)) == [KEEP, KEEP, "real_lookalike"] * 2


def test_only_a_rule_rejects() -> None:
    assert not screens_anything(Screens(max_attempts=9))
    for rule in (DRIFT, {"near_duplicate": {"max_cosine": 0.9}}):
        assert screens_anything(Screens.model_validate(rule))
