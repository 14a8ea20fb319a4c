"""The interface of a system: one way to make faces, from identities over variation to images.

Each actor creates a system once and then asks it for one batch after another. All its draws are
keyed by position (`factory.seeding`), so that every actor gives the same result.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from factory.datasets.store import Store
from factory.recipe import GenerateRecipe, InputError, Part, checked
from factory.seeding import seed64


@dataclass(frozen=True)
class Position:
    """The position of an image in a dataset: its identity, slot and attempt."""

    identity: int
    slot: int
    attempt: int

    def seed(self, root: int, stage: str = "image") -> int:
        """Return the 64-bit seed of this position; the sidecar states the one of stage `image`."""
        return seed64(root, stage, self.identity, self.slot, self.attempt)


@dataclass
class Conditions:
    """The conditions of the images of a batch.

    Attributes:
        context: float32 [B, D], the context of each image; an embedding has unit length.
        target: float32 [B], the cosine that the teacher should measure between image and context.
        extras: further arrays [B, ...] of the system, such as a style or a requested m.
    """

    context: np.ndarray
    target: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Rendered:
    """The images of a batch, uint8 [B, S, S, 3] RGB, and JSON-able facts about each image."""

    images: np.ndarray
    truth: list[dict[str, Any]]


class System(ABC):
    """One way to make faces.

    Subclasses set `name`, `Options` (the fields of the recipe's `options`) and `sources` (the
    accepted values of `identities.source`), and implement `draw_contexts`, `vary` and `sample`.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Part]] = Part
    sources: ClassVar[tuple[str, ...]]
    weights: ClassVar[tuple[str, ...]] = ()  # names that the recipe's `weights` must have
    one_sided: ClassVar[bool] = True  # a cosine above the target does not count as identity drift
    banked: bool = True  # contexts come from an identity bank, where they are kept apart

    def __init__(self, recipe: GenerateRecipe) -> None:
        """Check the recipe's fields against the system; `load` loads the weights."""
        self.recipe = recipe
        self.options: Any = checked(self.Options, recipe.options, "recipe field options.")
        if recipe.identities.source not in self.sources:
            raise InputError(
                f"recipe field identities.source: {recipe.identities.source!r}; {self.name} "
                f"accepts: {', '.join(self.sources)}"
            )
        missing = [name for name in self.weights if name not in recipe.weights]
        if missing:
            raise InputError(f"recipe field weights.{missing[0]}: missing; {self.name} needs it")
        self.check()

    def check(self) -> None:
        """Raise InputError if the recipe asks for something that the system cannot do."""

    def open(self) -> None:
        """Open the datasets that the recipe names; InputError if they differ from what it says."""

    def origins(self) -> tuple[Store, ...]:
        """Return the datasets whose images the system uses; call `open` first."""
        return ()

    def load(self) -> None:
        """Load weights and open datasets; called once in each actor, before the first batch."""

    def gpu(self) -> dict[str, str]:
        """Return facts about the GPU for manifests; empty if a CPU makes the images."""
        return {}

    def meet(self, contexts: np.ndarray) -> None:
        """Take the contexts of all identities, float32 [n, D]; called before `vary`."""

    def remarks(self, contexts: np.ndarray) -> list[str]:
        """Return lines to print when the contexts of all identities are known."""
        return []

    @abstractmethod
    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return candidate contexts, float32 [n, D]; each depends on its index alone."""

    @abstractmethod
    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Draw the variation of each image; contexts is float32 [B, D], one row for each image."""

    @abstractmethod
    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Make the images of one batch."""
