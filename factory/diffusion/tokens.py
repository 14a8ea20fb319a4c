"""DCFace's condition tokens: identity tokens, style tokens, and their keys and values.

Identity tokens come from a recognizer's embedding and its late spatial features. Style tokens come
from means and standard deviations of its early features over a grid (docs/papers.md 1.1; Kim et
al., DCFace, CVPR 2023, section 3.2 and equations 3-6). One linear layer maps all tokens to keys and
values.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factory.seeding import generator

LEVELS = 2**16  # number of values of a 16-bit draw, which decides whether dropout keeps an element
MAX_PERIOD = 10_000


def sinusoids(count: int, channels: int) -> Tensor:
    """Return a table of sines and cosines of the position, float32 [count, channels] in [-1, 1]."""
    half = torch.arange((channels + 1) // 2)
    angles = torch.arange(count)[:, None] * torch.exp(-math.log(MAX_PERIOD) * 2 * half / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :channels]


def patch_statistics(x: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of the whole map and of each patch of a grid.

    Standard deviations are the population's, as in the paper's equation 4. The published code has
    mean - E[x^2] in their place (docs/papers.md 1.1).

    Args:
        x: float [B, C, H, W], H and W multiples of `grid`.
        grid: patches in each direction, k.

    Returns:
        Two of [B, 1 + k * k, C]: the whole map first, then the patches row by row.
    """
    size = (x.shape[2] // grid, x.shape[3] // grid)
    first, second = (F.avg_pool2d(part, size).flatten(2) for part in (x, x.square()))
    first = torch.cat([first.mean(dim=2, keepdim=True), first], dim=2)
    second = torch.cat([second.mean(dim=2, keepdim=True), second], dim=2)
    variance = second - first.square()
    deviation = variance.clamp_min(1e-8).sqrt()  # a flat patch has no finite gradient at zero
    return first.transpose(1, 2), deviation.transpose(1, 2)


class IdentityTokens(nn.Module):
    """The identity's tokens: the embedding is added to the time, spatial features are tokens.

    Of the paper's 1 + S tokens the first enters the residual blocks and S enter attention, as in
    the published code; the paper's text has all of them in attention (docs/papers.md 1.1). If a
    size differs from that of the tokens or of the time embedding, a linear layer maps between them;
    at paper scale the sizes are equal.
    """

    def __init__(
        self, embedding_size: int, map_channels: int, places: int, tokens: int, time: int
    ) -> None:
        """Make the layers.

        Args:
            embedding_size: dimensions D of an embedding.
            map_channels: channels C of the spatial features.
            places: S, their height times their width.
            tokens: channels of a token.
            time: channels of the time embedding.
        """
        super().__init__()
        table = sinusoids(1 + places, max(embedding_size, tokens)) - 0.5
        self.feature_position = nn.Parameter(table[0, :embedding_size].clone())
        self.positions = nn.Parameter(table[1:, :tokens].clone())
        self.scale = nn.Parameter(torch.tensor(0.001))
        self.to_time = _into(embedding_size, time)
        self.to_tokens = _into(map_channels, tokens)

    def forward(self, embedding: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens [B, S, tokens] and the addition to the time embedding [B, time].

        Args:
            embedding: raw embeddings [B, D], not of unit length.
            spatial: features [B, C, h, w].
        """
        tokens = self.to_tokens(spatial.flatten(2).transpose(1, 2)) + self.positions
        return tokens, self.scale * self.to_time(embedding + self.feature_position)


class StyleTokens(nn.Module):
    """The style's tokens: statistics of early features, which hold the look but not the person.

    s = LayerNorm(W1 mean + W2 deviation + position) for the whole map and each patch (equations
    4-6), after dropout, PReLU, a 1x1 convolution and batch normalization.
    """

    def __init__(
        self, map_channels: int, map_size: int, grid: int, tokens: int, dropout: float = 0.3
    ) -> None:
        """Make the layers.

        Args:
            map_channels: channels C of the early features.
            map_size: their height and width H.
            grid: k; if it does not divide H, features are resized down to a multiple of it.
            tokens: channels of a token.
            dropout: share of the features' elements that are dropped in training.
        """
        super().__init__()
        side = map_size // grid * grid
        self.shape = (map_channels, side, side)
        self.grid, self.dropout = grid, dropout
        self.activation = nn.PReLU()
        self.conv = nn.Conv2d(map_channels, tokens, 1)
        self.bn = nn.BatchNorm2d(tokens)
        self.mean_weight = nn.Parameter(torch.full((tokens,), 0.5))
        self.deviation_weight = nn.Parameter(torch.full((tokens,), 0.5))
        self.positions = nn.Parameter(sinusoids(1 + grid * grid, tokens) - 0.5)
        self.norm = nn.LayerNorm(tokens)

    def forward(self, early: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return tokens [B, 1 + k * k, tokens].

        Args:
            early: features [B, C, H, H].
            keep: bool [B, *shape], elements that dropout keeps (`draw_kept`); required in training
                if the rate is above 0.

        Raises:
            ValueError: `keep` is missing in training with a rate above 0.
        """
        x = early
        if x.shape[2] != self.shape[1]:
            x = F.interpolate(x, self.shape[1:], mode="nearest")
        if self.training and self.dropout > 0.0:
            if keep is None:
                raise ValueError(f"keep: None, dropout {self.dropout} needs a mask in training")
            x = x * keep / (1.0 - self.dropout)
        x = self.bn(self.conv(self.activation(x)))
        mean, deviation = patch_statistics(x.float(), self.grid)
        mixed = self.mean_weight * mean + self.deviation_weight * deviation
        return self.norm(mixed + self.positions)


def _into(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)


def draw_kept(seeds: list[int], shape: tuple[int, ...], rate: float) -> Tensor:
    """Draw the elements that dropout keeps, bool [len(seeds), *shape]; one seed for each sample."""
    count = math.prod(shape)
    rows = [np.frombuffer(generator(seed).bytes(2 * count), np.uint16) for seed in seeds]
    return torch.from_numpy(np.stack(rows).reshape(-1, *shape) >= round(rate * LEVELS))


class TokenAdapter(nn.Module):
    """Map condition tokens to keys and values: one layer for all blocks (docs/papers.md 1.1).

    Beyond the paper, learned empty tokens can replace those of samples without conditions, so that
    sampling can be guided.
    """

    def __init__(self, count: int, tokens: int, keys: int, learn_empty: bool = False) -> None:
        """Make the layer.

        Args:
            count: number of tokens M.
            tokens: channels of a token.
            keys: channels of a key and its value, 2A of the denoiser.
            learn_empty: whether there are empty tokens.
        """
        super().__init__()
        self.linear = nn.Linear(tokens, keys)
        self.empty = nn.Parameter(torch.randn(count, tokens)) if learn_empty else None

    def forward(self, tokens: Tensor | None, batch: int, empty: Tensor | None = None) -> Tensor:
        """Return keys and values [B, M, 2A].

        Args:
            tokens: [B, M, tokens], or None for the empty tokens in every sample.
            batch: number of samples B.
            empty: bool [B], samples that get the empty tokens, or [B, M], single tokens that do.

        Raises:
            ValueError: empty tokens are needed and were not learned.
        """
        if tokens is not None and empty is None:
            return self.linear(tokens)
        if self.empty is None:
            raise ValueError("empty tokens: there are none, learn_empty is false")
        blank = self.empty.expand(batch, -1, -1)
        if tokens is not None and empty is not None:
            replaced = empty[:, :, None] if empty.ndim == 2 else empty[:, None, None]
            blank = torch.where(replaced, blank.to(tokens.dtype), tokens)
        return self.linear(blank)
