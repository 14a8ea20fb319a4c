"""The autoencoders of latent diffusion.

Desk scale has a small one of its own. At 64 px the usual convolutions at full resolution would take
the whole time budget, so a pixel-unshuffle stem halves the image first. Paper scale uses diffusers'
VQModel in the shape of LDM's VQ-f4, Arc2Face diffusers' AutoencoderKL in the shape of Stable
Diffusion's. All have the same methods `encode` and `decode`.
"""

from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from factory.recipe import InputError, Part, Positive


class AutoencoderConfig(Part):
    """Sizes of the desk autoencoder: images [3, S, S] <-> latents [latent_channels, S/4, S/4]."""

    kind: Literal["bottleneck"] = "bottleneck"
    size: Positive = 64
    latent_channels: Positive = 4
    widths: tuple[Positive, Positive] = (64, 128)
    encoder_blocks: tuple[Positive, Positive] = (1, 2)
    decoder_blocks: tuple[Positive, Positive] = (2, 3)
    noise: Annotated[float, Field(ge=0.0)] = Field(
        default=0.1, description="Noise on normalized latents in training; decoding tolerates it."
    )


class VQConfig(Part):
    """LDM's VQ-f4 (docs/papers.md 2.1): 128 px <-> 3x32x32 latents, not quantized, not scaled."""

    kind: Literal["vq"] = "vq"
    size: Positive = 128
    latent_channels: Positive = 3
    codes: Positive = 8192
    widths: tuple[Positive, ...] = (128, 256, 512)
    blocks: Positive = 2


KL_BUILT: dict[str, Any] = {  # values of AutoencoderKL's fields that no size here changes
    **{"in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_num_groups": 32},
    **{"scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None, "latents_std": None},
    **{"use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True},
}


class KLConfig(Part):
    """Stable Diffusion 1's autoencoder: 512 px <-> 4x64x64 latents, scaled by 0.18215."""

    kind: Literal["kl"] = "kl"
    size: Positive = 512
    latent_channels: Positive = 4
    widths: tuple[Positive, ...] = (128, 256, 512, 512)
    blocks: Positive = 2


class Autoencoder(Protocol):
    """The interface that systems use: images float [B, 3, S, S] in [-1, 1] <-> latents."""

    config: AutoencoderConfig | VQConfig | KLConfig

    def encode(self, images: Tensor) -> Tensor:
        """Return latents [B, C, H, W]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, S, S], about [-1, 1], not clipped."""
        ...


class Residual(nn.Module):
    """Two normalized convolutions, whose result is added to the input."""

    def __init__(self, channels: int) -> None:
        """Make a block that starts as the identity."""
        super().__init__()
        self.norm1 = nn.GroupNorm(channels // 16, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(channels // 16, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of x's shape."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Bottleneck(nn.Module):
    """The desk autoencoder; its latents have zero mean and unit variance in each channel.

    In training, latents are normalized over the batch; afterwards the stored running statistics are
    used. Noise on the normalized latents limits the information in a latent and teaches the decoder
    to tolerate a denoiser's errors. It replaces a KL term.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        """Make the network with fresh weights."""
        super().__init__()
        self.config = config
        self.encoder_frozen = False
        outer, inner = config.widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, outer, 3, padding=1),
            *[Residual(outer) for _ in range(config.encoder_blocks[0])],
            nn.Conv2d(outer, inner, 3, stride=2, padding=1),
            *[Residual(inner) for _ in range(config.encoder_blocks[1])],
            nn.GroupNorm(inner // 16, inner),
            nn.SiLU(),
            nn.Conv2d(inner, config.latent_channels, 3, padding=1),
        )
        self.normalize = nn.BatchNorm2d(config.latent_channels, affine=False, momentum=0.01)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.latent_channels, inner, 3, padding=1),
            *[Residual(inner) for _ in range(config.decoder_blocks[1])],
            nn.Conv2d(inner, 4 * outer, 1),
            nn.PixelShuffle(2),
            *[Residual(outer) for _ in range(config.decoder_blocks[0])],
            nn.GroupNorm(outer // 16, outer),
            nn.SiLU(),
            nn.Conv2d(outer, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def freeze_encoder(self) -> None:
        """Train the decoder alone, so that a denoiser's latents stay valid."""
        self.encoder.requires_grad_(False)
        self.encoder_frozen = True

    def train(self, mode: bool = True) -> "Bottleneck":
        """Set the mode; a frozen encoder keeps the statistics of its latents."""
        super().train(mode)
        if self.encoder_frozen:
            self.normalize.eval()
        return self

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return images [B, 3, S, S] decoded from noisy latents; `noise` is standard noise."""
        return self.decode(self.encode(images) + self.config.noise * noise)

    def encode(self, images: Tensor) -> Tensor:
        """Return float32 latents [B, C, S/4, S/4] of unit variance."""
        return self.normalize(self.encoder(images).float())

    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 images [B, 3, S, S], about [-1, 1]."""
        return self.decoder(latents).float()


class VQ(nn.Module):
    """diffusers' VQModel, used as LDM's `VQModelInterface`: it encodes without quantization."""

    def __init__(self, config: VQConfig) -> None:
        """Make the network with fresh weights."""
        super().__init__()
        from diffusers import VQModel

        self.config = config
        self.encodes = True  # unless its weights came without the encoder's
        levels = len(config.widths)
        self.model = VQModel(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.widths,
            layers_per_block=config.blocks,
            latent_channels=config.latent_channels,
            vq_embed_dim=config.latent_channels,
            num_vq_embeddings=config.codes,
            sample_size=config.size,
            mid_block_add_attention=True,
        )

    def encode(self, images: Tensor) -> Tensor:
        """Return latents before quantization, without a scale factor.

        Raises:
            InputError: its weights came without the encoder's.
        """
        if not self.encodes:
            raise InputError(
                "recipe field weights.autoencoder.location: holds no encoder, and none lies beside "
                "it; accepted is the decoder's file with first_stage_encoder_state_dict.pt beside "
                "it, or one that holds both"
            )
        return self.model.encode(images).latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Quantize, then decode to float32 images [B, 3, S, S]."""
        return self.model.decode(latents, return_dict=False)[0].float()


class KL(nn.Module):
    """diffusers' AutoencoderKL as Stable Diffusion uses it; an image's latents are their mean."""

    def __init__(self, config: KLConfig) -> None:
        """Make the network with fresh weights."""
        super().__init__()
        from diffusers import AutoencoderKL

        self.config = config
        levels = len(config.widths)
        self.scaling: float = KL_BUILT["scaling_factor"]
        sizes: dict[str, Any] = {
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "block_out_channels": config.widths,
            "layers_per_block": config.blocks,
            "latent_channels": config.latent_channels,
            "sample_size": config.size,
        }
        self.model: Any = AutoencoderKL(**sizes, **KL_BUILT)

    def encode(self, images: Tensor) -> Tensor:
        """Return float32 latents [B, C, S/f, S/f], about unit variance; f halves at each level."""
        return self.scaling * self.model.encode(images).latent_dist.mode().float()

    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 images [B, 3, S, S], about [-1, 1]."""
        return self.model.decode(latents / self.scaling, return_dict=False)[0].float()


def make_autoencoder(config: AutoencoderConfig | VQConfig | KLConfig) -> Bottleneck | VQ | KL:
    """Make the autoencoder of a configuration, with fresh weights."""
    if isinstance(config, KLConfig):
        return KL(config)
    return VQ(config) if isinstance(config, VQConfig) else Bottleneck(config)


def edge_loss(images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute error of horizontal and vertical differences.

    It gives weight to fine contours, by which people differ and which L1 neglects. Both tensors are
    float [B, 3, S, S].
    """
    across = (images.diff(dim=3) - targets.diff(dim=3)).abs().mean()
    down = (images.diff(dim=2) - targets.diff(dim=2)).abs().mean()
    return across + down


def to_images(pixels: Tensor) -> Tensor:
    """Turn float [B, 3, S, S] in [-1, 1] into uint8 [B, S, S, 3], clipping."""
    scaled = (pixels.clamp(-1.0, 1.0) + 1.0) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def to_pixels(images: Tensor) -> Tensor:
    """Turn uint8 [B, S, S, 3] into channels_last float [B, 3, S, S] in [-1, 1]."""
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return pixels.contiguous(memory_format=torch.channels_last)
