"""DCFace's network: the ADM U-Net with identity tokens and style tokens (docs/papers.md 1.1)."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from factory.diffusion.adm import ADM, ADMConfig
from factory.diffusion.examples import features, resized
from factory.diffusion.tokens import IdentityTokens, Statistic, StyleTokens, TokenAdapter
from factory.recipe import Backbone, InputError, Part, Positive
from factory.recognition.backbones import IResNet, make_backbone


class ConditionsConfig(Part):
    """Sizes of the mixer's conditions; the defaults are the paper's."""

    embedding_size: Positive = Field(default=512, description="Size of the identity's embedding.")
    map_channels: Positive = Field(default=512, description="Channels of its spatial features.")
    map_size: Positive = Field(default=7, description="Their height and width.")
    style_channels: Positive = Field(
        default=64, description="Channels of a style's early features."
    )
    style_size: Positive = Field(default=56, description="Their height and width.")
    style_grid: Literal[1, 3, 5, 7] = Field(default=5, description="k of the k x k patches.")
    style_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    statistic: Statistic = Field(
        default="std",
        description="Beside the mean of a patch: its deviation, as the paper has it, or the mean "
        "less the mean of squares, which the published weights learned.",
    )
    token_channels: Positive = 512
    learn_empty: bool = Field(default=False, description="Learn empty tokens, for guidance.")
    identity_encoder: Literal["r18", "r34", "r50", "r100"] | None = Field(
        default=None,
        description="Train this network on identity images, as the paper does; default: the frozen "
        "teacher.",
    )
    identity_size: Positive = Field(default=112, description="Of the images that network takes.")
    identity_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0,
        exclude_if=lambda rate: rate == 0.0,  # files are those of before it was known
        description="Of that network, before its last linear layer, while it is trained.",
    )
    identity_layer: Literal["layer4", "layer4.0"] = Field(
        default="layer4",
        description="Of that network, whose map gives the spatial features: the last stage, or its "
        "first unit alone, as the published weights have it.",
    )


class DCFaceConfig(Part):
    """The denoiser, and for stage 2 its conditions."""

    unet: ADMConfig = ADMConfig()
    conditions: ConditionsConfig | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of an image or latent."""
        return self.unet.shape


class DCFaceNet(nn.Module):
    """The denoiser with its conditioner; without `conditions` it is an unconditional model.

    `given` holds in this order: the identity's raw embedding [B, D] and spatial features
    [B, C, h, w], or its image [B, 3, S, S] if the network has an identity encoder; the style's
    early features [B, C, H, H]; in training, the elements that dropout keeps of them, bool, and
    which samples are without identity and without style, bool [B, 2]. None means the empty tokens.
    """

    def __init__(self, config: DCFaceConfig) -> None:
        """Make the network with fresh weights."""
        super().__init__()
        self.unet = ADM(config.unet)
        self.has_conditions = config.conditions is not None
        if config.conditions is None:
            return
        sizes, unet = config.conditions, config.unet
        self.encoder, self.inputs = None, 4
        if sizes.identity_encoder:
            self.inputs = 3
            backbone = Backbone(
                name=sizes.identity_encoder,
                embedding_size=sizes.embedding_size,
                dropout=sizes.identity_dropout,
            )
            self.encoder = make_backbone(backbone, sizes.identity_size)
            self.encoder_size, self.layer = sizes.identity_size, sizes.identity_layer
        width, places = sizes.token_channels, sizes.map_size**2
        self.identity = IdentityTokens(
            sizes.embedding_size, sizes.map_channels, places, width, unet.feature_channels
        )
        self.style = StyleTokens(
            sizes.style_channels,
            sizes.style_size,
            sizes.style_grid,
            width,
            sizes.style_dropout,
            sizes.statistic,
        )
        count = places + 1 + sizes.style_grid**2
        self.adapter = TokenAdapter(count, width, unet.key_channels, sizes.learn_empty)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        given: tuple[Tensor, ...] | None,
        keep: Tensor | None = None,
        empty: Tensor | None = None,
    ) -> Tensor:
        """Predict noise or velocity, [B, C, H, W].

        Args:
            x: noisy images or latents [B, C, H, W].
            t: time steps [B] in [0, T).
            given: see the class.
            keep: not used, because `given` holds the dropout's mask.
            empty: bool [B], samples that get the empty tokens.
        """
        if not given:
            return self.denoise(x, t, None, keep, empty)
        conditions, lacking = given[: self.inputs], given[self.inputs :]
        if lacking:
            empty = lacking[0] if empty is None else lacking[0] | empty[:, None]
        return self.denoise(x, t, self.mixed(*conditions), keep, empty)

    def mixed(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens [B, M, token_channels] and the addition to the time embedding.

        Args:
            given: the conditions, as the class describes `given`.
        """
        if self.encoder is None:
            embedding, spatial, *style = given
        else:
            pixels, *style = given
            embedding, spatial = features(self.encoder, self.encoder_size, pixels, self.layer)
        tokens, feature = self.identity(embedding, spatial)
        return torch.cat([tokens, self.style(*style)], dim=1), feature

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        given: tuple[Tensor, ...] | None,
        keep: Tensor | None = None,
        empty: Tensor | None = None,
        whole: bool = False,
    ) -> Tensor:
        """Predict as `forward` does, with the result of `mixed` as `given`; sampling mixes once.

        `empty` may be bool [B, 2], for identity and style apart; `whole` returns the channels of a
        learned variance too.
        """
        if not self.has_conditions:
            return self.unet(x, t, whole=whole)
        tokens, feature = given or (None, None)
        if empty is None or self.adapter.empty is None:
            return self.unet(x, t, self.adapter(tokens, len(x)), feature, whole)
        if empty.ndim == 1:
            empty = empty[:, None].expand(-1, 2)
        places = self.identity.positions.shape[0]
        styles = self.style.positions.shape[0]
        lost = [empty[:, :1].expand(-1, places), empty[:, 1:].expand(-1, styles)]
        keys = self.adapter(tokens, len(x), torch.cat(lost, dim=1))
        if feature is not None:
            feature = feature.masked_fill(empty[:, :1], 0.0)
        return self.unet(x, t, keys, feature, whole)


def early_features(teacher: nn.Module, size: int, pixels: Tensor) -> Tensor:
    """Return a recognizer's features after stage 1, float [B, C, H, H], for styles.

    Args:
        teacher: frozen IResNet.
        size: height and width of its images.
        pixels: images [B, 3, S, S] in [-1, 1].
    """
    if not isinstance(teacher, IResNet):
        raise InputError(
            f"recipe field weights.teacher: {type(teacher).__name__} has no stages; accepted is "
            "an IResNet"
        )
    x = teacher.prelu(teacher.bn1(teacher.conv1(resized(pixels, size))))
    return teacher.get_submodule("layer1")(x).float()
