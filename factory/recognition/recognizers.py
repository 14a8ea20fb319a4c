"""Recognizers from files: our own, ONNX models and arcface_torch weights, behind one interface."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor, nn

from factory.recipe import Backbone, InputError, checked, local_path
from factory.recognition.backbones import DEPTHS, REDUCTION, IResNet, channels_last, make_backbone

FORMAT = "face-data-factory/recognizer"
FILE = "recognizer.safetensors"
BATCH = 128
ACCEPTED = (
    "a checkpoint folder, a .safetensors file, package:FILE.safetensors, onnx:FILE, "
    "arcface_torch:FILE"
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
        module: the torch network, images float [-1, 1] [B, 3, S, S] to float32 [B, D],
            differentiable, in eval mode and frozen; None for a recognizer that is not torch.
    """

    name: str
    size: int
    dimension: int
    sha256: str
    licence: str
    location: str
    module: nn.Module | None
    _embed: Callable[[np.ndarray], np.ndarray]

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
            `onnx:FILE` (onnxruntime), or `arcface_torch:FILE` (a state dict, read without
            unpickling code; the architecture follows from its shapes, or `FILE?name=r50`).
        dtype: of the network's convolutions; bfloat16 is faster and rounds cosines to about 0.01.
        device: where a torch network runs; an ONNX file runs on the CPU.

    Raises:
        InputError: unknown prefix, no such file, or a file that is not a recognizer.
    """
    prefix, colon, rest = reference.partition(":")
    if colon and prefix == "onnx":
        return _load_onnx(rest, reference)
    if colon and prefix == "arcface_torch":
        return _load_arcface_torch(rest, reference, dtype, device)
    if colon and prefix != "package":
        raise InputError(
            f"recognizer {reference!r}: unknown prefix {prefix!r}; accepted: {ACCEPTED}"
        )
    path = local_path(reference)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise InputError(f"recognizer {reference!r}: no file {path}; accepted: {ACCEPTED}")
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
    module = _filled(make_backbone(backbone, config["size"]), weights, reference)
    return _torch_recognizer(
        module,
        config["name"],
        config["size"],
        path,
        metadata.get("licence"),
        reference,
        dtype,
        device,
    )


def _load_arcface_torch(
    rest: str, reference: str, dtype: str, device: torch.device | str
) -> Recognizer:
    file, _, query = rest.partition("?")
    options = dict(parse_qsl(query))
    if set(options) - {"name"}:
        raise InputError(f"recognizer {reference!r}: accepted options: name={'|'.join(DEPTHS)}")
    path = _existing(file, reference)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not one
        raise InputError(
            f"recognizer {reference!r}: not a state dict that loads without running code: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not isinstance(weights, dict) or "fc.weight" not in weights:
        raise InputError(
            f"recognizer {reference!r}: not an arcface_torch state dict (no fc.weight)"
        )
    depths = _depths(weights)
    names = [name for name, known in DEPTHS.items() if known == depths]
    name = options.get("name", names[0] if names else "")
    if [name] != names:
        raise InputError(
            f"recognizer {reference!r}: depths {list(depths)} are not those of "
            f"{name or 'a known network'}; accepted: {', '.join(DEPTHS)}"
        )
    width, flat = weights["bn2.weight"].numel(), weights["fc.weight"].shape[1]
    size = REDUCTION * round((flat / width) ** 0.5)
    widths = [weights[f"layer{n}.0.conv2.weight"].shape[0] for n in range(1, 5)]
    module = IResNet(depths, widths, size, weights["fc.weight"].shape[0])
    return _torch_recognizer(
        _filled(module, weights, reference), path.stem, size, path, None, reference, dtype, device
    )


def _depths(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    units = [
        {name.split(".")[1] for name in weights if name.startswith(f"layer{n}.")}
        for n in range(1, 5)
    ]
    return tuple(len(layer) for layer in units)


def _filled(module: nn.Module, weights: Mapping[str, Tensor], reference: str) -> nn.Module:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"recognizer {reference!r}: weights do not fit: {reason}") from error
    return module


def _torch_recognizer(
    module: nn.Module,
    name: str,
    size: int,
    path: Path,
    licence: str | None,
    reference: str,
    dtype: str,
    device: torch.device | str,
) -> Recognizer:
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
    return Recognizer(
        name, size, dimension, _sha256(path), licence or "unknown", reference, module, embed
    )


def to_input(images: Tensor) -> Tensor:
    """Turn uint8 [B, S, S, 3] into float32 [B, 3, S, S] in [-1, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def _load_onnx(file: str, reference: str) -> Recognizer:
    path = _existing(file, reference)
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception classes are not public
        reason = str(error).splitlines()[0]
        raise InputError(f"recognizer {reference!r}: not an ONNX model: {reason}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape, made = inputs[0].shape, outputs[0].shape
    if len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int) or len(made) != 2:
        raise InputError(
            f"recognizer {reference!r}: maps {shape} to {made}; accepted is [B, 3, S, S] to [B, D]"
        )

    fixed = isinstance(shape[0], int)

    def embed(images: np.ndarray) -> np.ndarray:
        batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1.0
        each = 1 if fixed else len(batch)
        pieces = [batch[n : n + each] for n in range(0, len(batch), each)]
        made = [np.asarray(session.run(None, {inputs[0].name: one})[0]) for one in pieces]
        return np.concatenate(made)

    if fixed and shape[0] != 1:
        raise InputError(
            f"recognizer {reference!r}: batch is fixed to {shape[0]}; accepted: 1, any"
        )
    zeros = np.zeros((1, shape[2], shape[2], 3), np.uint8)
    dimension = embed(zeros).shape[1]
    return Recognizer(
        path.stem, shape[2], dimension, _sha256(path), "unknown", reference, None, embed
    )


def _existing(file: str, reference: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise InputError(f"recognizer {reference!r}: no file {path}; accepted: {ACCEPTED}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
