"""The ADM denoiser: a U-Net whose self-attention takes further keys and values from outside.

One class serves both scales (docs/papers.md 1.1; the network of Dhariwal and Nichol 2021 as DCFace
uses it). Time step and feature scale and shift one normalization in each residual block, residual
blocks resize, and condition tokens join the keys and values of self-attention. DCFace and CemiFace
share it. Tokens and channels stay in `channels_last` order, so that the reshapes copy nothing.
"""

import math
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from factory.diffusion.unet import TimeEmbedding
from factory.recipe import Natural, Part, Positive

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class ADMConfig(Part):
    """Sizes of the denoiser; the defaults are DCFace's at 112 pixels."""

    size: Positive = Field(default=112, description="Height and width of its images or latents.")
    in_channels: Positive = 3
    out_channels: Positive = Field(
        default=6, description="Channels after the first in_channels are not trained and not used."
    )
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 128, 256, 256, 512, 512)
    attention: tuple[bool, ...] = (False, False, False, False, True, False)
    blocks: Positive = Field(default=1, description="Blocks of a level going down; one more up.")
    unresized: tuple[Natural, ...] = Field(
        default=(4,), description="Levels that pass their map to the next one without resizing."
    )
    head_channels: Positive = 64
    norm_groups: Positive = 32
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> "ADMConfig":
        levels = len(self.widths)
        if len(self.attention) != levels:
            raise ValueError(
                f"attention has {len(self.attention)} entries, accepted is one for each of the "
                f"{levels} widths"
            )
        for width in self.widths:
            if width % self.norm_groups:
                raise ValueError(
                    f"width {width} is not accepted: widths are multiples of norm_groups "
                    f"({self.norm_groups})"
                )
        attentive = {w for w, attends in zip(self.widths, self.attention, strict=True) if attends}
        attentive.add(self.widths[-1])
        if len(attentive) > 1 or self.widths[-1] % self.head_channels:
            raise ValueError(
                f"attention at widths {sorted(attentive)}: accepted is one width, the last, a "
                f"multiple of head_channels ({self.head_channels})"
            )
        if any(level >= levels - 1 for level in self.unresized):
            raise ValueError(f"unresized {self.unresized}: accepted are levels below {levels - 1}")
        halvings = levels - 1 - len(set(self.unresized))
        if self.size % 2**halvings:
            raise ValueError(f"size {self.size} cannot be halved {halvings} times")
        if self.out_channels < self.in_channels:
            raise ValueError(
                f"out_channels is {self.out_channels}, accepted is in_channels "
                f"({self.in_channels}) or more"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of an image or latent."""
        return (self.in_channels, self.size, self.size)

    @property
    def key_channels(self) -> int:
        """Return 2A: the channels of an outside key and its value."""
        return 2 * self.widths[-1]

    @property
    def feature_channels(self) -> int:
        """Return the size of the time embedding and of `feature`."""
        return 4 * self.widths[0]


class ADMBlock(nn.Module):
    """Two convolutions; the map may be resized before the first, the time scales and shifts it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        config: ADMConfig,
        resize: Literal["up", "down"] | None = None,
    ) -> None:
        """Make the block; with `resize` it halves or doubles height and width."""
        super().__init__()
        self.resize = resize
        self.norm1 = nn.GroupNorm(config.norm_groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(config.feature_channels, 2 * outputs)
        self.norm2 = nn.GroupNorm(config.norm_groups, outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return a map [B, outputs, H', W']; `time` [B, 4 * base] is already activated."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(self._resized(F.silu(self.norm1(x))))
        h = self.norm2(h) * (1 + scale) + shift
        h = self.conv2(self.dropout(F.silu(h)))
        return self.shortcut(self._resized(x)) + h

    def _resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        if self.resize == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class AttentionBlock(nn.Module):
    """Self-attention with the map's own keys and values and outside ones (docs/papers.md 1.1).

    The softmax runs over H*W own keys and M outside keys. A head's channels are laid out as query,
    key, value in the projection, and as key, value in `keys`.
    """

    def __init__(self, channels: int, config: ADMConfig) -> None:
        """Make the block for a map of `channels`."""
        super().__init__()
        self.heads = channels // config.head_channels
        self.norm = nn.GroupNorm(config.norm_groups, channels)
        self.project = nn.Linear(channels, 3 * channels)
        self.out = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Return a map of x's shape [B, A, H, W]; `keys` is [B, M, 2A] or None."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = _by_head(self.project(tokens), self.heads, 3)
        if keys is not None:
            outside = _by_head(keys, self.heads, 2)
            key = torch.cat([key, outside[0].to(key.dtype)], dim=2)
            value = torch.cat([value, outside[1].to(value.dtype)], dim=2)
        if x.is_cuda:
            attended = F.scaled_dot_product_attention(query, key, value)
        else:  # torch's fused backward on CPUs took seven times as long at these sizes
            scores = query @ (key / math.sqrt(key.shape[3])).transpose(2, 3)
            attended = scores.softmax(dim=3) @ value
        made = self.out(attended.transpose(1, 2).flatten(2))
        return x + made.transpose(1, 2).unflatten(2, x.shape[2:])


class ADMLevel(nn.Module):
    """A residual block and, if the level has attention, an attention block."""

    def __init__(self, inputs: int, outputs: int, attend: bool, config: ADMConfig) -> None:
        """Make the pair."""
        super().__init__()
        self.residual = ADMBlock(inputs, outputs, config)
        self.attention = AttentionBlock(outputs, config) if attend else None

    def forward(self, x: Tensor, time: Tensor, keys: Tensor | None) -> Tensor:
        """Return a map [B, outputs, H, W]."""
        x = self.residual(x, time)
        return x if self.attention is None else self.attention(x, keys)


class ADM(nn.Module):
    """The denoiser: noisy images [B, C, H, W] and time steps [B] -> noise or velocity."""

    def __init__(self, config: ADMConfig) -> None:
        """Make the network with fresh weights; the last convolution starts at zero."""
        super().__init__()
        self.config = config
        widths, depths = config.widths, range(len(config.widths))
        self.time = TimeEmbedding(widths[0])
        self.stem = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        skips = [widths[0]]
        for depth in depths:
            for _ in range(config.blocks):
                self.down.append(
                    ADMLevel(skips[-1], widths[depth], config.attention[depth], config)
                )
                skips.append(widths[depth])
            if depth < depths[-1]:
                resize = None if depth in config.unresized else "down"
                self.down.append(ADMBlock(skips[-1], skips[-1], config, resize))
                skips.append(skips[-1])
        width = widths[-1]
        self.middle = nn.ModuleList(
            [ADMLevel(width, width, True, config), ADMLevel(width, width, False, config)]
        )
        self.up = nn.ModuleList()
        for depth in reversed(depths):
            for _ in range(config.blocks + 1):
                inputs = width + skips.pop()
                self.up.append(ADMLevel(inputs, widths[depth], config.attention[depth], config))
                width = widths[depth]
            if depth > 0:
                resize = None if depth - 1 in config.unresized else "up"
                self.up.append(ADMBlock(width, width, config, resize))
        self.norm = nn.GroupNorm(config.norm_groups, width)
        self.out = _zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, keys: Tensor | None = None, feature: Tensor | None = None
    ) -> Tensor:
        """Predict noise or velocity, [B, in_channels, H, W].

        Args:
            x: noisy images or latents [B, in_channels, H, W].
            t: time steps [B] in [0, T).
            keys: adapted condition tokens [B, M, 2A], for each head key then value; or None.
            feature: [B, 4 * base], added to the time embedding; or None.
        """
        time = self.time(t)
        if feature is not None:
            time = time + feature
        time = F.silu(time)
        x = self.stem(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, time, keys) if isinstance(layer, ADMLevel) else layer(x, time)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, time, keys)
        for layer in self.up:
            if isinstance(layer, ADMLevel):
                x = layer(torch.cat([x, skips.pop()], dim=1), time, keys)
            else:
                x = layer(x, time)
        return self.out(F.silu(self.norm(x)))[:, : self.config.in_channels]


def _zeroed(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _by_head(channels: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    """Split [B, N, heads * parts * d] into `parts` tensors [B, heads, N, d]."""
    split = channels.unflatten(2, (heads, parts, -1))
    return tuple(split[:, :, :, part].transpose(1, 2) for part in range(parts))
