"""Conditioning a denoiser on an identity: projection, partial dropout, the empty context."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from factory.seeding import generator


class ContextProjection(nn.Module):
    """Project an embedding, drop some of its elements in training, or replace it by the empty one.

    Contextual partial dropout (CPD, docs/papers.md 2.2; IDiff-Face section 3.3) is element-wise
    inverted dropout on the projected context. All blocks of a forward pass share one mask, kept
    values are scaled by 1 / (1 - rate), and it is off in evaluation. The empty context replaces the
    projected context after the dropout, so that none of its elements is dropped.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        cpd_rate: float,
        learn_empty: bool,
        hidden: Sequence[int] = (),
    ) -> None:
        """Make the projection; the empty context is zero unless it is learned.

        With `hidden` sizes the projection is an MLP with ReLU instead of one linear layer.
        """
        super().__init__()
        sizes = (inputs, *hidden, outputs)
        layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
        for before, after in pairwise(sizes[1:]):
            layers += [nn.ReLU(), nn.Linear(before, after)]
        self.linear = nn.Sequential(*layers) if hidden else layers[0]
        self.cpd_rate = cpd_rate
        if learn_empty:
            self.empty = nn.Parameter(torch.randn(outputs))
        else:
            self.register_buffer("empty", torch.zeros(outputs), persistent=False)

    def forward(
        self,
        context: Tensor | None,
        batch: int,
        keep: Tensor | None = None,
        empty: Tensor | None = None,
    ) -> Tensor:
        """Return projected contexts [batch, outputs].

        Args:
            context: embeddings [batch, inputs], or None for the empty context in every sample.
            batch: number of samples.
            keep: bool [batch, outputs]; required in training if the rate is above 0.
            empty: bool [batch], samples that get the empty context.

        Raises:
            ValueError: `keep` is missing in training with a rate above 0.
        """
        if context is None:
            return self.empty.expand(batch, -1)
        projected = self.linear(context)
        if self.training and self.cpd_rate > 0.0:
            if keep is None:
                raise ValueError(
                    f"keep: None, cpd_rate {self.cpd_rate} needs a mask of shape "
                    f"{tuple(projected.shape)} in training"
                )
            projected = projected * keep / (1.0 - self.cpd_rate)
        if empty is not None:
            projected = torch.where(empty[:, None], self.empty.to(projected.dtype), projected)
        return projected


def draw_masks(
    seed: int, batch: int, channels: int, cpd_rate: float, empty_prob: float
) -> tuple[Tensor, Tensor]:
    """Draw the masks of one training batch from its seed.

    Returns:
        (keep, empty): keep is bool [batch, channels], true with probability 1 - cpd_rate; empty is
        bool [batch], true with probability empty_prob.
    """
    draws = generator(seed)
    keep = draws.random((batch, channels), dtype=np.float32) >= cpd_rate
    empty = draws.random(batch, dtype=np.float32) < empty_prob
    return torch.from_numpy(keep), torch.from_numpy(empty)
