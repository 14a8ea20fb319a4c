"""The studio as a system: rendered heads of people whose truth is known.

An identity is a `Person` of one of the disjoint sets of `factory.studio.people`. An image shows
that person in a `View`. `plain: true` is the deliberately poorer variant `studio_plain`.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from factory.recipe import InputError, Part
from factory.studio.people import SPLITS, person
from factory.studio.render import render
from factory.studio.views import attributes, draw_view
from factory.systems.base import Conditions, Position, Rendered, System


class StudioOptions(Part):
    """The studio's own fields of a generate recipe."""

    plain: bool = Field(
        default=False, description="Plain skin and hair, and small ranges of pose and light."
    )


class Studio(System):
    """Render identities of one studio set, without weights and without a bank."""

    name = "studio"
    Options = StudioOptions
    sources = SPLITS
    banked = False

    def check(self) -> None:
        """Refuse a sampler and weights, which belong to diffusion systems."""
        if self.recipe.sampler is not None:
            raise InputError("recipe field sampler: the studio renders; accepted is no sampler")
        if self.recipe.weights:
            given = ", ".join(self.recipe.weights)
            raise InputError(f"recipe field weights: {given}; the studio accepts no weights")

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return empty contexts, float32 [n, 0], because the index alone names a person."""
        return np.zeros((len(indices), 0), np.float32)

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Return empty conditions, because `sample` draws the view from the position."""
        return Conditions(context=contexts, target=np.ones(len(positions), np.float32))

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Render each position's person in a view keyed by the position."""
        split, plain = self.recipe.identities.source, self.options.plain
        images, truth = [], []
        for position in positions:
            who = person(split, position.identity, plain)
            view = draw_view(position.seed(self.recipe.seed), plain)
            images.append(render(who, view, self.recipe.image.size))
            truth.append(attributes(who, view))
        return Rendered(np.stack(images), truth)


SYSTEM = Studio
