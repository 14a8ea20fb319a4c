"""Loading and saving recognizers: our own files, and other projects' (`recognition.foreign`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from factory.datasets.located import local_file
from factory.datasets.provenance import RECOGNIZER
from factory.recipe import Backbone, InputError, Weights, checked, public
from factory.recognition.backbones import make_backbone
from factory.recognition.foreign import LOADERS
from factory.recognition.inside import load_dcface
from factory.recognition.recognizer import ACCEPTED, Recognizer, filled, torch_recognizer

FORMAT = "face-data-factory/recognizer"
FILE = RECOGNIZER


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
        name: its name in tables.
        licence: licence of the weights.
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
    """Load the recognizer that a reference names.

    Args:
        reference: a checkpoint folder, a `.safetensors` file, `package:FILE.safetensors`,
            `onnx:FILE`, `arcface_torch:FILE`, `adaface:FILE?channels=bgr`, `magface:FILE`,
            `mobilefacenet:FILE?channels=rgb` or `insightface:NAME`, with options as
            `factory.recognition.foreign` states them, or `dcface:FILE`, the teacher inside of a
            checkpoint of DCFace. Folder and files may be URLs, fetched to the cache
            (`factory.datasets.located`).
        dtype: of the network's convolutions; bfloat16 is faster and moves cosines by less than
            0.01. An ONNX file embeds in float32, whatever its weights are kept in.
        device: where a torch network runs; an ONNX file embeds on the CPU.

    Raises:
        InputError: the prefix is unknown, there is no such file, or it is not a recognizer.
    """
    prefix, colon, rest = reference.partition(":")
    if colon and prefix != "package" and not rest.startswith("//"):
        loaders = {**LOADERS, "dcface": load_dcface}
        if prefix not in loaders:
            raise InputError(
                f"recognizer {reference!r}: unknown prefix {prefix!r}; accepted: {ACCEPTED}"
            )
        return loaders[prefix](reference, dtype, device)
    path = local_file(reference, f"recognizer {reference!r}", f"accepted: {ACCEPTED}", FILE)
    if path.suffix != ".safetensors":
        raise InputError(f"recognizer {reference!r}: {path.name}; accepted: {ACCEPTED}")
    return _load_own(path, reference, dtype, device)


def checked_recognizer(recognizer: Weights) -> Recognizer:
    """Load a composition's recognizer, and compare it with the stated sha256.

    Raises:
        InputError: the recognizer is missing, or its sha256 is not the stated one.
    """
    loaded = load_recognizer(recognizer.location)
    if recognizer.sha256 and loaded.sha256 != recognizer.sha256:
        raise InputError(
            f"recipe field recognizer.sha256: {recognizer.sha256}, but "
            f"{public(recognizer.location)} has {loaded.sha256}"
        )
    return loaded


def read_own(path: Path, form: str, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a file of ours; InputError where it is of another format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{what}: not a safetensors file: {error}") from error
    if metadata.get("format") != form:
        raise InputError(f"{what}: format {metadata.get('format')!r}, accepted is {form!r}")
    return weights, metadata


def _load_own(path: Path, reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    weights, metadata = read_own(path, FORMAT, f"recognizer {reference!r}")
    config = json.loads(metadata["config"])
    backbone = checked(Backbone, config["backbone"], f"recognizer {reference!r} backbone")
    module = filled(make_backbone(backbone, config["size"]), weights, reference)
    licence = metadata.get("licence", "unknown")
    return torch_recognizer(
        module, config["name"], config["size"], path, licence, reference, dtype, device
    )
