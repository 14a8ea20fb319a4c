"""A recognizer: a network that embeds faces, trained by us or by others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from factory.datasets.located import local_file
from factory.datasets.provenance import sha256_file
from factory.recipe import InputError, with_options
from factory.recognition.backbones import channels_last

BATCH = 128
ACCEPTED = (
    "a checkpoint folder or a .safetensors file, by path or URL, package:FILE.safetensors, "
    "onnx:FILE, arcface_torch:FILE, adaface:FILE?channels=bgr, magface:FILE, "
    "mobilefacenet:FILE?channels=rgb, insightface:NAME, dcface:FILE"
)
CHANNELS = ("rgb", "bgr")
TOLD = 3  # names that an error lists of many


@dataclass
class Recognizer:
    """A face recognition network, ready to embed.

    Attributes:
        name: its name in tables.
        size: height and width of its images in pixels.
        dimension: size of an embedding.
        sha256: sha256 of its weights file.
        licence: licence of its weights; "unknown" if the file does not say.
        location: the reference that it was loaded from.
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

        It maps RGB images float [-1, 1] [B, 3, S, S] to raw embeddings float32 [B, D], also if the
        weights expect other channels or pixel ranges. An ONNX graph is converted to torch at the
        first call.

        Raises:
            InputError: the graph has an operator that has no torch form here.
        """
        return self._module()

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Return raw embeddings float32 [B, D], not normalised and without a pass of mirror images.

        Args:
            images: uint8 [B, S, S, 3], RGB, aligned as the recognizer expects.

        Raises:
            InputError: the images have another shape or type.
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


def filled(module: nn.Module, weights: Mapping[str, Tensor], reference: str) -> nn.Module:
    """Load a state dict into a network and return it; InputError where they do not fit.

    Counts of batches, which decide nothing, may be missing.
    """
    own = module.state_dict()
    counts = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    given = {**counts, **weights}
    wrong = [
        f"{name} is {list(given[name].shape)} in place of {list(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    apart = {
        "missing": [name for name in own if name not in given],
        "of no use": [name for name in given if name not in own],
        "of another shape": wrong,
    }
    said = [f"{_some(names)} {what}" for what, names in apart.items() if names]
    if said:
        raise InputError(f"recognizer {reference!r}: weights do not fit: {'; '.join(said)}")
    module.load_state_dict(given)
    return module


def _some(names: list[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return f"{', '.join(names[:TOLD])}{more}"


def file_and_options(reference: str, **accepted: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """Return the local file that a reference of others names, and its options.

    Args:
        reference: PREFIX:FILE?option=value&option=value.
        accepted: each option's values; `licence` is accepted beside them.

    Raises:
        InputError: there is no such file, or an option or its value is not known.
    """
    _, options = options_of(reference, **accepted)
    return local_file(reference, f"recognizer {reference!r}", f"accepted: {ACCEPTED}"), options


def options_of(reference: str, **accepted: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return what stands between prefix and `?`, and the options; InputError for unknown ones."""
    what, options = with_options(reference.partition(":")[2])
    for name, value in options.items():
        if name == "licence" and value:
            continue
        if name not in accepted or value not in accepted[name]:
            known = [f"{option}={'|'.join(values)}" for option, values in accepted.items()]
            raise InputError(
                f"recognizer {reference!r}: option {name}={value}; accepted options: "
                f"{', '.join(known)}, licence=NAME"
            )
    return what, options


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
        module: network from float RGB in [-1, 1] [B, 3, size, size] to float32 [B, D].
        name: its name in tables.
        size: height and width of its images.
        path: the file of its weights.
        licence: licence of the weights.
        reference: the reference that the user gave.
        dtype: float32, or bfloat16 for autocast.
        device: the device that it runs on.
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
    """Turn uint8 [B, S, S, 3] into float32 [B, 3, S, S] in [-1, 1], stored channels last."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
