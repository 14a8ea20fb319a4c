"""Stable Diffusion 1's U-Net as diffusers builds and stores it, such as Arc2Face's.

`diffusers:FOLDER/diffusion_pytorch_model.safetensors`, or `.bin`, names its weights, with
`config.json` beside them (`factory.diffusion.folders`). Sizes are read from the config; all else is
as in version 1.5, which the config has to say too. Its noise process is version 1.5's as well,
which stands in a file of the pipeline and not beside the U-Net: betas whose roots are evenly spaced
from 0.00085 to 0.012, 1,000 steps, noise as the prediction.
"""

import inspect
from typing import Any

from pydantic import model_validator
from torch import Tensor, nn

from factory.datasets.located import local_file
from factory.diffusion.folders import CONFIG, check_fields, read_config
from factory.diffusion.layouts import PublishedDenoiser
from factory.diffusion.schedule import Process
from factory.recipe import InputError, Part, Positive, Weights, checked
from factory.recognition.tensors import read_tensors

FOLDER, UNET = "diffusers", "UNet2DConditionModel"
SYSTEM = "arc2face"  # the one here that is built on it
PROCESS = Process(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
ACCEPTED = (
    "accepted is diffusers:FOLDER/diffusion_pytorch_model.safetensors or .bin, a "
    f"{UNET} built as Stable Diffusion 1.5's is, with its {CONFIG} beside it"
)
DOWN = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
SIZES = {  # ours -> UNet2DConditionModel's
    "latent_channels": "in_channels",
    "widths": "block_out_channels",
    "blocks": "layers_per_block",
    "context_size": "cross_attention_dim",
}


class StableConfig(Part):
    """Sizes of the U-Net; the defaults are version 1.5's, of 859,520,964 parameters."""

    latent_channels: Positive = 4
    widths: tuple[Positive, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    blocks: Positive = 2
    context_size: Positive = 768

    @model_validator(mode="after")
    def _as_many(self) -> "StableConfig":
        if len(self.widths) != len(self.attention):
            raise ValueError(
                f"attention has {len(self.attention)} entries, widths accept {len(self.widths)}"
            )
        return self


class StableUNet(nn.Module):
    """diffusers' UNet2DConditionModel, called as denoisers are here."""

    def __init__(self, config: StableConfig) -> None:
        """Make the network with fresh weights."""
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.config = config
        self.model = UNet2DConditionModel(
            in_channels=config.latent_channels,
            out_channels=config.latent_channels,
            down_block_types=tuple(DOWN[attends] for attends in config.attention),
            up_block_types=tuple(UP[attends] for attends in reversed(config.attention)),
            block_out_channels=config.widths,
            layers_per_block=config.blocks,
            cross_attention_dim=config.context_size,
        )

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            x: noisy latents, float [B, C, H, W].
            t: time steps, integers [B].
            tokens: what attention looks at, float [B, n, context_size].

        Returns:
            float [B, C, H, W].
        """
        return self.model(x, t, encoder_hidden_states=tokens, return_dict=False)[0]


def read_unet(weights: Weights, field: str) -> PublishedDenoiser:
    """Read the U-Net of a folder of diffusers, without running code of it.

    Args:
        weights: the file of weights in the folder.
        field: begins errors, such as "recipe field weights.denoiser.location".

    Raises:
        InputError: a file is missing or something else, or the config is of another network.
    """
    raw, beside = read_config(weights, field, ACCEPTED)
    if raw.get("_class_name") != UNET:
        kind = raw.get("_class_name") or raw.get("model_type") or "no class"
        raise InputError(f"{field}: {beside} is of {kind}; {ACCEPTED}")
    sizes = _sizes(raw, f"{field}: {beside}")
    path = local_file(weights.location, field, ACCEPTED)
    found = read_tensors(path, field, accepted=ACCEPTED)
    config = {
        "system": SYSTEM,
        "model": sizes.model_dump(),
        "process": PROCESS.model_dump(),
        "trained_with": {"autoencoder": ""},
    }
    return PublishedDenoiser(config, {f"model.{name}": value for name, value in found.items()})


def _sizes(raw: dict[str, Any], where: str) -> StableConfig:
    from diffusers import UNet2DConditionModel

    named = inspect.signature(UNet2DConditionModel.__init__).parameters
    built = {name: one.default for name, one in named.items() if name != "self"}
    kinds = raw.get("down_block_types")
    if not isinstance(kinds, list) or not set(kinds) <= set(DOWN.values()):
        raise InputError(
            f"{where} has down_block_types {kinds!r}; accepted are {' and '.join(DOWN.values())}"
        )
    attention = [kind == DOWN[True] for kind in kinds]
    built["down_block_types"] = kinds
    built["up_block_types"] = [UP[attends] for attends in reversed(attention)]
    built["out_channels"] = raw.get("in_channels")
    built["sample_size"] = raw.get("sample_size")  # the recipe states the size of images
    check_fields(raw, built, tuple(SIZES.values()), where)
    sizes = {ours: raw[theirs] for ours, theirs in SIZES.items()}
    return checked(StableConfig, {**sizes, "attention": attention}, f"{where} ")
