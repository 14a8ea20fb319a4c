"""A system whose images say what they are, a teacher that reads it, and shards made of them."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from factory.datasets.manifest import ShardManifest
from factory.datasets.store import Store
from factory.generation import make
from factory.generation.commit import Committer
from factory.generation.make import Maker
from factory.generation.work import Assignment, ShardWork
from factory.plan import Shard
from factory.recipe import GenerateRecipe, parse
from factory.systems.base import Conditions, Position, Rendered, System

SIZE = 16
SHARD = Shard(2, 4, 0, 3)


def recipe(attempts: int = 1, **screens: Any) -> GenerateRecipe:
    """Return a recipe of toy images; `attempts` counts where there is a screen."""
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
            "cost": {"seconds_per_image": [0.1, 1], "source": "test"},
            "sampler": {"name": "ddim", "steps": 1, "batch_size": 4, "dtype": "float32"},
            "screens": screens | {"max_attempts": attempts},
            "weights": {"teacher": {"location": __file__}},  # what screens ask of it is in Teacher
        }
    )
    assert isinstance(made, GenerateRecipe)
    return made


class Toy(System):
    """Images whose first pixel holds (identity, slot, attempt).

    Attributes:
        calls: what was asked of it, in order, and for how many images.
    """

    name = "toy"
    sources = ("toy",)

    def __init__(self, recipe: GenerateRecipe) -> None:
        super().__init__(recipe)
        self.calls: list[tuple[str, int]] = []

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        self.calls.append(("draw", len(indices)))
        return np.eye(8, dtype=np.float32)[[i % 8 for i in indices]]

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        self.calls.append(("vary", len(positions)))
        return Conditions(contexts, np.ones(len(positions), np.float32))

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        self.calls.append(("sample", len(positions)))
        images = np.zeros((len(positions), SIZE, SIZE, 3), np.uint8)
        for image, p in zip(images, positions, strict=True):
            image[0, 0] = p.identity, p.slot, p.attempt
        return Rendered(images, [{"n": p.slot} for p in positions])


class Teacher:
    """Sees the identity of a toy image, except where slot 1 is at its first `bad` attempts."""

    size, dimension = SIZE, 8

    def __init__(self, bad: int = 0) -> None:
        self.bad = bad

    def embed(self, images: np.ndarray) -> np.ndarray:
        out = np.zeros((len(images), 8), np.float32)
        for row, (identity, slot, attempt) in enumerate(images[:, 0, 0]):
            wrong = slot == 1 and attempt < self.bad
            out[row, (identity + wrong) % 8] = 5.0
            out[row, 7] = 0.1 * slot + 0.01 * attempt
        return out


class Sighted(Teacher):
    """Sees identity, slot and attempt, each in a direction of its own."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        out = super().embed(images)
        for row, (_, slot, attempt) in enumerate(images[:, 0, 0]):
            out[row, 4 + slot] += 2.0 * (attempt + 1)
        return out


def maker(recipe: GenerateRecipe, teacher: Teacher, folder: Path) -> Maker:
    """Return a maker of a toy recipe's shards, whose teacher is the one given."""
    assignment = Assignment(recipe.model_dump(mode="json"), Store(folder), "digest", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "create", Toy)
        patch.setattr(make, "load_recognizer", lambda location, dtype, device: teacher)
        patch.setattr(make, "hardware", SimpleNamespace(set_up=lambda *_: None))
        return Maker(assignment)


def made(recipe: GenerateRecipe, teacher: Teacher, folder: Path) -> ShardWork:
    """Return the toy shard, made and not written."""
    return maker(recipe, teacher, folder)(SHARD)


def written(recipe: GenerateRecipe, work: ShardWork, folder: Path) -> ShardManifest:
    """Commit a shard of a toy recipe; return its manifest."""
    return Committer(Assignment(recipe.model_dump(mode="json"), Store(folder), "digest", {}))(work)
