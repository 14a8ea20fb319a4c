"""Exponential moving average of a network's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """The average of weights by a power schedule: decay = min(highest, 1 - (1 + step)^-0.75).

    The schedule is that of DCFace and IDiff-Face (docs/papers.md 0.2).

    Args:
        held: the weights at the start, as a worker holds them.
        highest: highest decay; with 0 the average equals the last weights.
    """

    def __init__(self, held: Mapping[str, Tensor], highest: float) -> None:
        self.highest = highest
        self.state = {name: value.detach().clone() for name, value in held.items()}

    @torch.no_grad()
    def update(self, held: Mapping[str, Tensor], step: int) -> None:
        """Move the average towards the weights after optimizer step `step` (from 0)."""
        decay = min(self.highest, 1.0 - (1.0 + step) ** -0.75)
        for name, value in held.items():
            if value.is_floating_point():
                self.state[name].lerp_(value.to(self.state[name].dtype), 1.0 - decay)
            else:
                self.state[name].copy_(value)
