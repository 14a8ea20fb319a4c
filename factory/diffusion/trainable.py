"""The interface between the one training loop and the many networks and losses that it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from factory.recipe import TrainRecipe


@dataclass(frozen=True)
class Place:
    """The place of a trainable: worker `rank` of `world`, with a local folder for caches.

    `say` receives how far the work before the first step is.
    """

    rank: int
    world: int
    cache: Path
    say: Callable[[str], None] = lambda line: None


class Trainable(ABC):
    """A network, its data and its loss, trained by `factory.training.diffusion`.

    Every draw is keyed by the step, so that a resumed training repeats nothing and skips nothing.

    Attributes:
        module: the network whose parameters are trained.
        file_name: the file name of the finished network.
        steps_per_epoch: optimizer steps of one pass over the data.
        random_init: names of frozen parts that have random weights on request; the saved file
            states them.
    """

    module: nn.Module
    file_name: ClassVar[str]
    steps_per_epoch: int
    random_init: tuple[str, ...] = ()

    def __init__(self, recipe: TrainRecipe, place: Place) -> None:
        """Keep the recipe; subclasses check its fields."""
        self.recipe = recipe
        self.place = place

    def load(self) -> Self:
        """Make the network and open the data, before the first batch; returns itself."""
        return self

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole training."""
        schedule = self.recipe.schedule
        return schedule.steps or (schedule.epochs or 0) * self.steps_per_epoch

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """Yield this worker's batches of steps [start, stop)."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the scalar loss of a batch, and numbers to log.

        Args:
            module: the network as the engine wraps it, in training mode.
            batch: one item of `batches`.
        """

    @abstractmethod
    def samples(self, module: nn.Module) -> np.ndarray:
        """Return sample pictures of an averaged network, uint8 [rows, columns, S, S, 3]."""

    @abstractmethod
    def save(self, module: nn.Module, path: Path, facts: dict[str, str]) -> None:
        """Write an averaged network as safetensors, with `facts` in its metadata."""
