"""A system whose processes end, hang or wait at the shards that a folder names (FACTORY_SYSTEMS).

`FOLDER/SHARD.exit` and `FOLDER/SHARD.hang` hold at how many tries of the shard its process ends or
hangs; `FOLDER/SHARD.nodes` says for how many nodes the shard waits that have loaded the system, if
it is not the first that any actor begins; `FOLDER/SHARD.gate` makes it wait until that file is
gone.
"""

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray

from factory.plan import Shard
from factory.recipe import GenerateRecipe, Part, parse
from factory.systems.base import Conditions, Position, Rendered, System

SIZE = 16


def in_actor() -> bool:
    return ray.is_initialized() and bool(ray.get_runtime_context().get_actor_id())


class MoodyOptions(Part):
    """Where its moods lie."""

    folder: str


class Moody(System):
    """Images that are the shade of their position."""

    name = "moody"
    Options = MoodyOptions
    sources = ("moody",)
    banked = False

    def load(self) -> None:
        if in_actor():
            (self.folder / f"{ray.get_runtime_context().get_node_id()}.node").touch()

    @property
    def folder(self) -> Path:
        return Path(self.options.folder)

    def enter(self, shard: Shard) -> None:
        if not in_actor():
            return  # made alone, undisturbed
        with (self.folder / f"{shard.name}.tries").open("a") as file:
            file.write(".")
        tries = (self.folder / f"{shard.name}.tries").stat().st_size
        if tries <= self._asked(shard, "exit"):
            os._exit(3)
        while tries <= self._asked(shard, "hang"):  # a signal would end one sleep
            ctypes.PyDLL(None).sleep(3600)  # holds the GIL, as a hanging extension may
        if len(list(self.folder.glob("*.tries"))) > 1:
            while len(list(self.folder.glob("*.node"))) < self._asked(shard, "nodes"):
                time.sleep(0.05)
        while (self.folder / f"{shard.name}.gate").exists():
            time.sleep(0.05)

    def _asked(self, shard: Shard, mood: str) -> int:
        path = self.folder / f"{shard.name}.{mood}"
        return int(path.read_text()) if path.exists() else 0

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        return np.zeros((len(indices), 0), np.float32)

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        return Conditions(contexts, np.ones(len(positions), np.float32))

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        shades = [p.seed(self.recipe.seed) % 256 for p in positions]
        images = np.empty((len(positions), SIZE, SIZE, 3), np.uint8)
        images[:] = np.array(shades, np.uint8)[:, None, None, None]
        return Rendered(images, [{} for _ in positions])


SYSTEM = Moody


def moody(folder: Path, shards: int, **workers: float) -> GenerateRecipe:
    """Return a recipe of so many shards of two images each, whose moods lie in a folder."""
    folder.mkdir(exist_ok=True)
    made = parse(
        {
            "kind": "generate",
            "name": "moody",
            "seed": 4,
            "system": "moody",
            "licence": "CC0-1.0",
            "image": {"size": SIZE, "format": "png"},
            "identities": {"count": shards, "images_each": 2, "source": "moody"},
            "shard": {"identities": 1},
            "workers": workers,
            "cost": {"seconds_per_image": [0.1, 1], "source": "test"},
            "options": {"folder": str(folder)},
        }
    )
    assert isinstance(made, GenerateRecipe)
    return made
