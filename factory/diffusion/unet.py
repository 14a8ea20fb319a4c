"""IDiff-Face's denoiser: a U-Net conditioned on a time step and an identity context.

One class serves both scales (docs/papers.md 2.1; Boutros et al., IDiff-Face, ICCV 2023, section 3).
The recipe's `model` gives the widths; at paper scale they are 96, 192, 384, 768 on 32x32x3 latents.
Tokens and channels stay in `channels_last` order, so that the reshapes below copy nothing.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from factory.diffusion.conditioning import ContextProjection
from factory.recipe import Part, Positive

MAX_PERIOD = 10_000


class UNetConfig(Part):
    """Sizes of the denoiser; the defaults are the paper's."""

    latent_channels: Positive = 3
    latent_size: Positive = 32
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (96, 192, 384, 768)
    attention: tuple[bool, ...] = (False, True, True, True)
    blocks: Positive = Field(default=2, description="Blocks of a level going down; one more up.")
    head_channels: Positive = 32
    norm_groups: Positive = Field(
        default=32, description="Groups; on CPUs, bfloat16 is slow below 16 channels a group."
    )
    conditioning: Literal["cross_attention", "adagn", "both"] = Field(
        default="cross_attention",
        description="The context enters attention blocks, residual blocks (adagn), or both.",
    )
    context_size: Positive = Field(default=512, description="Dimensions of an embedding.")
    context_hidden: tuple[Positive, ...] = Field(
        default=(), description="Hidden sizes of an MLP that projects the context; () is linear."
    )
    context_channels: Positive = 256
    context_tokens: Positive = 32
    cpd_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    learn_empty_context: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "UNetConfig":
        if len(self.attention) != len(self.widths):
            raise ValueError(
                f"attention has {len(self.attention)} entries, accepted is one for each of the "
                f"{len(self.widths)} widths"
            )
        for width in (*self.widths, self.context_channels):
            if width % self.norm_groups or width % self.head_channels:
                raise ValueError(
                    f"width {width} is not accepted: widths and context_channels are multiples of "
                    f"norm_groups ({self.norm_groups}) and head_channels ({self.head_channels})"
                )
        if self.latent_size % 2 ** (len(self.widths) - 1):
            raise ValueError(
                f"latent_size {self.latent_size} cannot be halved {len(self.widths) - 1} times"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of a latent."""
        return (self.latent_channels, self.latent_size, self.latent_size)


class TimeEmbedding(nn.Module):
    """Sinusoid of the time step, then two linear layers: [B] -> float [B, 4 * channels]."""

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        """Prepare `channels // 2` frequencies falling from 1 to 1/10,000."""
        super().__init__()
        half = channels // 2
        frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Embed time steps in [0, T)."""
        angles = t.float()[:, None] * self.frequencies
        return self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))


class ResidualBlock(nn.Module):
    """Two convolutions; the time, and the context if asked for, scale and shift the second norm."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig) -> None:
        """Make the block."""
        super().__init__()
        time = 4 * config.widths[0]
        context = None if config.conditioning == "cross_attention" else config.context_channels
        self.norm1 = nn.GroupNorm(config.norm_groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.context = nn.Linear(context, outputs) if context else None
        self.scale = nn.Linear(outputs, outputs)
        self.shift = nn.Linear(outputs, outputs)
        self.norm2 = nn.GroupNorm(config.norm_groups, outputs)
        self.conv2 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Return a map [B, outputs, H, W]; `time` and `context` are not yet activated."""
        step = self.time(F.silu(time))
        if self.context is not None:
            step = step + self.context(F.silu(context))
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        h = (1 + self.scale(step)[:, :, None, None]) * h + self.shift(step)[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Multi-head attention from tokens [B, N, C] to keys and values [B, M, D]."""

    def __init__(self, channels: int, source: int, head_channels: int) -> None:
        """Make projections; heads have `head_channels` channels."""
        super().__init__()
        self.heads = channels // head_channels
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(source, channels)
        self.value = nn.Linear(source, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Return tokens [B, N, C]."""
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, x), (self.key, source), (self.value, source))
        )
        if x.is_cuda:
            attended = F.scaled_dot_product_attention(query, key, value)
        else:  # torch's fused backward on CPUs took seven times as long at these sizes
            scores = query @ (key / math.sqrt(key.shape[3])).transpose(2, 3)
            attended = scores.softmax(dim=3) @ value
        return self.out(attended.transpose(1, 2).flatten(2))


class SelfAttentionBlock(nn.Module):
    """Attention within the map alone, for denoisers with the context in residual blocks only."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        """Make the block."""
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, channels)
        self.attention = Attention(channels, channels, config.head_channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return a map of x's shape."""
        tokens = _tokens(self.norm(x))
        return x + _map(self.attention(tokens, tokens), x)


class ContextAttentionBlock(nn.Module):
    """Self-attention, attention to the context's tokens and a feed-forward layer.

    One linear layer turns the context [B, D] into M tokens of D channels. The three layers share
    one normalization, as in the paper's code (docs/papers.md 2.1).
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        """Make the block for a map of `channels`."""
        super().__init__()
        width = config.context_channels
        self.tokens = config.context_tokens
        self.enter = nn.Conv2d(channels, channels, 1)
        self.expand = nn.Linear(width, width * config.context_tokens)
        self.context_norm = nn.GroupNorm(config.norm_groups, width)
        self.norm = nn.GroupNorm(config.norm_groups, channels)
        self.within = Attention(channels, channels, config.head_channels)
        self.across = Attention(channels, width, config.head_channels)
        self.feed = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.leave = _zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return a map of x's shape."""
        keys = self.context_norm(self.expand(context).unflatten(1, (-1, self.tokens)))
        keys = keys.transpose(1, 2)
        h = self.enter(x)
        tokens = _tokens(self.norm(h))
        h = h + _map(self.within(tokens, tokens), h)
        h = h + _map(self.across(_tokens(self.norm(h)), keys), h)
        h = h + _map(self.feed(_tokens(self.norm(h))), h)
        return x + self.leave(h)


class Level(nn.Module):
    """A residual block and, if the level has attention, an attention block."""

    def __init__(self, inputs: int, outputs: int, attend: bool, config: UNetConfig) -> None:
        """Make the pair."""
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, config)
        self.attention = None
        if attend and config.conditioning == "adagn":
            self.attention = SelfAttentionBlock(outputs, config)
        elif attend:
            self.attention = ContextAttentionBlock(outputs, config)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        """Return a map [B, outputs, H, W]."""
        x = self.residual(x, time, context)
        return x if self.attention is None else self.attention(x, context)


class UNet(nn.Module):
    """The denoiser: latents [B, C, H, W], time steps [B] and contexts -> noise or velocity."""

    def __init__(self, config: UNetConfig) -> None:
        """Make the network with fresh weights; the last convolution starts at zero."""
        super().__init__()
        self.config = config
        widths = config.widths
        self.context = ContextProjection(
            config.context_size,
            config.context_channels,
            config.cpd_rate,
            config.learn_empty_context,
            config.context_hidden,
        )
        self.time = TimeEmbedding(widths[0])
        self.stem = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        skips = [widths[0]]
        for depth, (width, attend) in enumerate(zip(widths, config.attention, strict=True)):
            for _ in range(config.blocks):
                self.down.append(Level(skips[-1], width, attend, config))
                skips.append(width)
            if depth < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList(
            [
                Level(widths[-1], widths[-1], True, config),
                Level(widths[-1], widths[-1], False, config),
            ]
        )
        self.up = nn.ModuleList()
        width = widths[-1]
        for depth in reversed(range(len(widths))):
            narrower = widths[max(depth - 1, 0)]
            for outputs in (*[widths[depth]] * config.blocks, narrower):
                level = Level(width + skips.pop(), outputs, config.attention[depth], config)
                self.up.append(level)
                width = outputs
            if depth > 0:
                self.up.append(nn.ConvTranspose2d(width, width, 4, stride=2, padding=1))
        self.norm = nn.GroupNorm(config.norm_groups, widths[0])
        self.out = _zeroed(nn.Conv2d(widths[0], config.latent_channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None,
        keep: Tensor | None = None,
        empty: Tensor | None = None,
    ) -> Tensor:
        """Predict noise or velocity, [B, C, H, W].

        Args:
            x: noisy latents [B, C, H, W].
            t: time steps [B] in [0, T).
            context: unit embeddings [B, D], or None for the empty context everywhere.
            keep: bool [B, context_channels], elements that partial dropout keeps (training only).
            empty: bool [B], samples whose projected context becomes the empty one.
        """
        projected = self.context(context, len(x), keep, empty)
        time = self.time(t)
        x = self.stem(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, time, projected) if isinstance(layer, Level) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, time, projected)
        for layer in self.up:
            if isinstance(layer, Level):
                x = layer(torch.cat([x, skips.pop()], dim=1), time, projected)
            else:
                x = layer(x)
        return self.out(F.silu(self.norm(x)))


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _tokens(x: Tensor) -> Tensor:
    """Turn a map [B, C, H, W] into tokens [B, H*W, C]."""
    return x.flatten(2).transpose(1, 2)


def _map(tokens: Tensor, like: Tensor) -> Tensor:
    """Turn tokens [B, H*W, C] into a map of the shape of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])
