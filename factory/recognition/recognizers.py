"""Recognizers behind one interface: our own files, and those of others (`recognition.foreign`)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from factory.datasets.located import local_file
from factory.datasets.provenance import RECOGNIZER, sha256_file
from factory.recipe import Backbone, InputError, checked
from factory.recognition.backbones import channels_last, make_backbone

FORMAT = "face-data-factory/recognizer"
FILE = RECOGNIZER
BATCH = 128
ACCEPTED = (
    "a checkpoint folder or a .safetensors file, by path or URL, package:FILE.safetensors, "
    "onnx:FILE, arcface_torch:FILE, adaface:FILE?channels=bgr, insightface:NAME"
)


@dataclass
class Recognizer:
    """A face recognition network, ready to embed.

    Attributes:
        name: what to call it in tables.
        size: height and width of its images in pixels.
        dimension: size of an embedding.
        sha256: of its weights file.
        licence: of its weights; "unknown" where the file does not say.
        location: the reference it was loaded from.
    """

    name: str
    size: int
    dimension: int
    sha256: str
    licence: str
    location: str
    _module: Callable[[], nn.Module]
    _embed: Callable[[np.ndarray], np.ndarray]

    @cached_property
    def module(self) -> nn.Module:
        """Return the network for losses and guidance: differentiable, in eval mode and frozen.

        It maps RGB images float [-1, 1] [B, 3, S, S] to raw embeddings float32 [B, D], whatever
        order of channels and range of pixels the weights themselves expect. An ONNX graph is turned
        into torch when this is first asked for.

        Raises:
            InputError: the graph has an operator that has no torch form here.
        """
        return self._module()

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Return raw embeddings float32 [B, D], not normalised and without a flipped pass.

        Args:
            images: uint8 [B, S, S, 3], RGB, aligned as the recognizer expects.

        Raises:
            InputError: another shape or type.
        """
        shape = (self.size, self.size, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
            raise InputError(
                f"recognizer {self.name}: images are {images.dtype} {list(images.shape)}, "
                f"accepted are uint8 [B, {self.size}, {self.size}, 3]"
            )
        out = np.empty((len(images), self.dimension), np.float32)
        for start in range(0, len(images), BATCH):
            out[start : start + BATCH] = self._embed(images[start : start + BATCH])
        return out


def save_recognizer(
    path: Path,
    weights: Mapping[str, Tensor],
    backbone: Backbone,
    size: int,
    name: str,
    licence: str,
) -> None:
    """Write a recognizer in the project's format.

    Args:
        path: the .safetensors file to write.
        weights: state dict of the network `make_backbone(backbone, size)`.
        backbone: name and sizes of the network.
        size: height and width of its images.
        name: what to call it.
        licence: of the weights.
    """
    from safetensors.torch import save_file

    config = {"backbone": backbone.model_dump(mode="json"), "size": size, "name": name}
    metadata = {"format": FORMAT, "config": json.dumps(config, sort_keys=True), "licence": licence}
    save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata)


def load_recognizer(
    reference: str,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: torch.device | str = "cpu",
) -> Recognizer:
    """Load the recognizer a reference names.

    Args:
        reference: a checkpoint folder, a `.safetensors` file, `package:FILE.safetensors`,
            `onnx:FILE`, `arcface_torch:FILE`, `adaface:FILE?channels=bgr` or `insightface:NAME`,
            with options as `factory.recognition.foreign` states them. Folder and files may be URLs,
            fetched to the cache (`factory.datasets.located`).
        dtype: of the network's convolutions; bfloat16 is faster and rounds cosines to about 0.01.
            An ONNX file embeds in its own precision.
        device: where a torch network runs; an ONNX file embeds on the CPU.

    Raises:
        InputError: unknown prefix, no such file, or a file that is not a recognizer.
    """
    prefix, colon, rest = reference.partition(":")
    if colon and prefix != "package" and not rest.startswith("//"):
        from factory.recognition.foreign import LOADERS

        if prefix not in LOADERS:
            raise InputError(
                f"recognizer {reference!r}: unknown prefix {prefix!r}; accepted: {ACCEPTED}"
            )
        return LOADERS[prefix](reference, dtype, device)
    path = local_file(reference, f"recognizer {reference!r}", f"accepted: {ACCEPTED}", FILE)
    if path.suffix != ".safetensors":
        raise InputError(f"recognizer {reference!r}: {path.name}; accepted: {ACCEPTED}")
    return _load_own(path, reference, dtype, device)


def _load_own(path: Path, reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"recognizer {reference!r}: not a safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"recognizer {reference!r}: format {metadata.get('format')!r}, accepted is {FORMAT!r}"
        )
    config = json.loads(metadata["config"])
    backbone = checked(Backbone, config["backbone"], f"recognizer {reference!r} backbone")
    module = filled(make_backbone(backbone, config["size"]), weights, reference)
    licence = metadata.get("licence", "unknown")
    return torch_recognizer(
        module, config["name"], config["size"], path, licence, reference, dtype, device
    )


def filled(module: nn.Module, weights: Mapping[str, Tensor], reference: str) -> nn.Module:
    """Load a state dict into a network and return it; InputError where they do not fit."""
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"recognizer {reference!r}: weights do not fit: {reason}") from error
    return module


def torch_recognizer(
    module: nn.Module,
    name: str,
    size: int,
    path: Path,
    licence: str,
    reference: str,
    dtype: str,
    device: torch.device | str,
) -> Recognizer:
    """Return a torch network as a recognizer, frozen and in eval mode.

    Args:
        module: float RGB in [-1, 1] [B, 3, size, size] to float32 [B, D].
        name: what to call it.
        size: height and width of its images.
        path: the file its weights came from.
        licence: of the weights.
        reference: what the user asked for.
        dtype: float32, or bfloat16 for autocast.
        device: where it runs.
    """
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"recognizer dtype {dtype!r}; accepted: float32, bfloat16")
    device = torch.device(device)
    channels_last(module.eval().requires_grad_(False)).to(device)

    @torch.inference_mode()
    def embed(images: np.ndarray) -> np.ndarray:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            return module(to_input(torch.from_numpy(images).to(device))).float().cpu().numpy()

    with torch.inference_mode():
        dimension = module(torch.zeros(1, 3, size, size, device=device)).shape[1]
    sha256 = sha256_file(path)
    return Recognizer(name, size, dimension, sha256, licence, reference, lambda: module, embed)


def to_input(images: Tensor) -> Tensor:
    """Turn uint8 [B, S, S, 3] into float32 [B, 3, S, S] in [-1, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
