"""What a system is: one way to make faces, with its identities, its variation and its sampler.

A system is created once in each actor and then asked for one batch after another. Everything it
draws is keyed by position (`factory.seeding`), so that any actor gives the same answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from factory.datasets.store import Store
from factory.plan import Shard
from factory.recipe import GenerateRecipe, InputError, Part, checked
from factory.seeding import seed64


@dataclass(frozen=True)
class Position:
    """Where an image stands: its identity, slot and attempt in a dataset."""

    identity: int
    slot: int
    attempt: int

    def seed(self, root: int, stage: str = "image") -> int:
        """Return the 64-bit seed of this position; the sidecar states that of stage `image`."""
        return seed64(root, stage, self.identity, self.slot, self.attempt)


@dataclass
class Conditions:
    """What each image of a batch is made from.

    Attributes:
        context: float32 [B, D], the context of each image (unit length where it is an embedding).
        target: float32 [B], the cosine the teacher should measure between image and context.
        extras: further arrays [B, ...] of the system's own, such as a style or a requested m.
    """

    context: np.ndarray
    target: np.ndarray
    extras: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Rendered:
    """Images of one batch: uint8 [B, S, S, 3] RGB, and JSON-able facts known of each image."""

    images: np.ndarray
    truth: list[dict[str, Any]]


class System(ABC):
    """One way to make faces.

    Subclasses set `name`, their `Options` (the recipe's `options`) and `sources` (what
    `identities.source` may be), and draw, vary and sample.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Part]] = Part
    sources: ClassVar[tuple[str, ...]]
    weights: ClassVar[tuple[str, ...]] = ()  # names the recipe's `weights` have, as a rule
    one_sided: ClassVar[bool] = True  # a cosine above the target is no identity drift
    banked: bool = True  # contexts come from an identity bank, separated and screened

    def __init__(self, recipe: GenerateRecipe) -> None:
        """Check the recipe's fields against the system; loading weights is `load`'s work."""
        self.recipe = recipe
        self.options: Any = checked(self.Options, recipe.options, "recipe field options.")
        if recipe.identities.source not in self.sources:
            raise InputError(
                f"recipe field identities.source: {recipe.identities.source!r}; {self.name} "
                f"accepts: {', '.join(self.sources)}"
            )
        missing = [name for name in self.needed() if name not in recipe.weights]
        if missing:
            raise InputError(f"recipe field weights.{missing[0]}: missing; {self.name} needs it")
        self.check()

    def needed(self) -> tuple[str, ...]:
        """Return the names that the recipe's `weights` must have."""
        return self.weights

    def check(self) -> None:
        """Raise InputError where the recipe asks for what the system cannot do."""

    def enter(self, shard: Shard) -> None:
        """Begin a shard, before its first image is varied; batches follow in their order."""

    def open(self) -> None:
        """Open the datasets the recipe names; raises InputError where they are not as it says."""

    def origins(self) -> tuple[Store, ...]:
        """Return the datasets whose images enter what is made; they were opened."""
        return ()

    def load(self) -> None:
        """Load weights and open datasets; called once in each actor, before the first batch."""

    def gpu(self) -> dict[str, str]:
        """Return what manifests state of the GPU that makes images; nothing where a CPU does."""
        return {}

    def meet(self, contexts: np.ndarray) -> None:
        """Take the contexts of all identities, float32 [n, D], before the first one is varied."""

    def remarks(self, contexts: np.ndarray) -> list[str]:
        """Return lines worth printing once the contexts of all identities are known."""
        return []

    @abstractmethod
    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return candidate contexts, float32 [n, D]; a pure function of each index."""

    @abstractmethod
    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Draw the variation within an identity; contexts is float32 [B, D], one row an image."""

    @abstractmethod
    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Make the images of one batch."""
