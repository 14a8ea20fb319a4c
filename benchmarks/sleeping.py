"""A system that sleeps instead of sampling, so that a benchmark sees everything but a network.

`FACTORY_SYSTEMS=benchmarks.sleeping` makes it known. Its contexts are drawn and banked as others
are; its images are a square of its position's colour, which encodes in microseconds.
"""

import time
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from factory.recipe import Part
from factory.systems.base import Conditions, Position, Rendered, System
from factory.systems.contexts import uniform

DIMENSION = 16  # of a context


class SleepingOptions(Part):
    """The system's own fields of a generate recipe."""

    seconds: float = Field(default=0.0, ge=0.0, le=3600.0, description="Sleep for each image.")


class Sleeping(System):
    """Sleep for each image, then return a square that the position colours."""

    name = "sleeping"
    Options = SleepingOptions
    sources = ("uniform",)

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Draw unit vectors, float32 [n, 16]."""
        return uniform(self.recipe.seed, indices, DIMENSION)

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Return the contexts as they are: nothing varies."""
        return Conditions(contexts, np.ones(len(positions), np.float32))

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Sleep, then colour one square for each position."""
        time.sleep(self.options.seconds * len(positions))
        size = self.recipe.image.size
        seeds = [position.seed(self.recipe.seed) for position in positions]
        colours = np.array([[seed >> shift & 255 for shift in (0, 8, 16)] for seed in seeds])
        images = np.broadcast_to(colours[:, None, None], (len(seeds), size, size, 3))
        return Rendered(images.astype(np.uint8), [{} for _ in seeds])


SYSTEM = Sleeping
