"""Recipes and frozen networks of a few thousand weights, on which tests run whole systems."""

from pathlib import Path
from typing import Any

import torch

from factory.diffusion.autoencoder import AutoencoderConfig, Bottleneck
from factory.diffusion.files import save_weights
from factory.diffusion.schedule import Process
from factory.diffusion.unet import UNet, UNetConfig
from factory.recipe import Backbone, GenerateRecipe, TrainRecipe, parse
from factory.recognition.backbones import make_backbone
from factory.recognition.recognizers import save_recognizer

SIZE = 16
DIMENSION = 8
IDIFF: dict[str, Any] = {
    "latent_channels": 4,
    "latent_size": 4,
    "widths": [32, 32],
    "attention": [False, True],
    "blocks": 1,
    "norm_groups": 2,
    "conditioning": "both",
    "context_size": DIMENSION,
    "context_channels": 32,
    "context_tokens": 2,
    "learn_empty_context": True,
}
ADM: dict[str, Any] = {  # the U-Net of DCFace, CemiFace and others built on it
    "size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "widths": [32, 32],
    "attention": [False, True],
    "unresized": [],
    "head_channels": 16,
    "norm_groups": 2,
}
DCFACE: dict[str, Any] = {
    "unet": ADM,
    "conditions": {
        "embedding_size": DIMENSION,
        "map_channels": 8,
        "map_size": 1,
        "style_channels": 8,
        "style_size": 8,
        "style_grid": 3,
        "token_channels": 16,
        "learn_empty": True,
    },
}


def save_frozen(folder: Path) -> dict[str, Path]:
    """Write an autoencoder to 4x4x4 latents and a teacher of 8 dimensions; returns their files."""
    torch.manual_seed(3)
    sizes = AutoencoderConfig(
        size=SIZE, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1)
    )
    autoencoder = Bottleneck(sizes).train()
    colours = torch.rand(32, 3, 1, 1) * 1.4 - 0.7
    for _ in range(40):  # only to fit the statistics of the latents
        autoencoder.encode(colours + 0.1 * torch.randn(32, 3, SIZE, SIZE))
    config = sizes.model_dump()
    save_weights(folder / "autoencoder.safetensors", "autoencoder", autoencoder, config, {})
    backbone = Backbone(
        name="iresnet", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), embedding_size=DIMENSION
    )
    teacher = make_backbone(backbone, SIZE).state_dict()
    save_recognizer(folder / "teacher.safetensors", teacher, backbone, SIZE, "teacher", "CC0-1.0")
    return {name: folder / f"{name}.safetensors" for name in ("autoencoder", "teacher")}


def save_idiff(folder: Path) -> dict[str, Path]:
    """Write what IDiff-Face generates with, its denoiser one that answers; returns their files."""
    files = save_frozen(folder) | {"denoiser": folder / "denoiser.safetensors"}
    torch.manual_seed(3)
    unet = UNet(UNetConfig.model_validate(IDIFF))
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.08)
    config = {"model": IDIFF, "process": Process(prediction="v_prediction").model_dump()}
    save_weights(files["denoiser"], "denoiser", unet, config, {"licence": "CC0-1.0"})
    return files


def located(files: dict[str, Path], *names: str) -> dict[str, Any]:
    """Return a recipe's `weights` of the files named, or of all."""
    return {name: {"location": str(files[name])} for name in names or files}


def generating(system: str, files: dict[str, Path], source: str, **changes: Any) -> GenerateRecipe:
    """Return a recipe of four identities of three images each."""
    raw: dict[str, Any] = {
        "kind": "generate",
        "name": "small",
        "seed": 5,
        "system": system,
        "licence": "CC0-1.0",
        "image": {"size": SIZE},
        "identities": {"count": 4, "images_each": 3, "source": source},
        "shard": {"identities": 2},
        "workers": {"max": 1},
        "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
        "weights": located(files, "denoiser", "autoencoder", "teacher"),
        "sampler": {"name": "dpmsolver++", "steps": 3, "batch_size": 4, "dtype": "float32"},
    }
    recipe = parse(raw | changes)
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def training(
    system: str, files: dict[str, Path], data: str, model: dict[str, Any], **changes: Any
) -> TrainRecipe:
    """Return a recipe of 60 steps of 8 images, velocity on latents."""
    raw: dict[str, Any] = {
        "kind": "train",
        "name": "small",
        "seed": 3,
        "system": system,
        "licence": "CC0-1.0",
        "image": {"size": SIZE},
        "data": {"train": data},
        "model": model,
        "weights": located(files, "autoencoder", "teacher"),
        "options": {"process": {"prediction": "v_prediction"}},
        "optimizer": {"name": "adamw", "lr": 0.003},
        "schedule": {"name": "constant", "steps": 60, "batch_size": 8},
        "ema": 0.9,
        "engine": {"name": "torch", "precision": "float32"},
        "checkpoint": {"every_steps": 30},
    }
    recipe = parse(raw | changes)
    assert isinstance(recipe, TrainRecipe)
    return recipe
