"""Weights on disk: safetensors whose metadata states their kind and their network's sizes.

Files of others stand in for them: LDM's VQ-f4 and Stable Diffusion's for an autoencoder's
(`factory.diffusion.foreign`), checkpoints of DCFace, IDiff-Face and Arc2Face for a denoiser's
(`factory.diffusion.published`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from factory.datasets.located import local_file
from factory.datasets.provenance import ACCEPTED, checked_sha256
from factory.diffusion.autoencoder import (
    KL,
    VQ,
    AutoencoderConfig,
    Bottleneck,
    KLConfig,
    VQConfig,
    make_autoencoder,
)
from factory.diffusion.foreign import ENCODER, foreign_config, foreign_state, is_foreign
from factory.diffusion.published import is_published, read_published
from factory.recipe import InputError, Weights, checked, prefix_of
from factory.recognition.backbones import channels_last

FORMAT = "face-data-factory/"
SAID = 500  # characters of what torch says of weights that do not fit
RANDOM_INIT = "random-init"  # a location that stands for fresh weights, for smoke tests

D = TypeVar("D", bound=nn.Module)


def save_weights(
    path: Path, kind: str, module: nn.Module, config: Any, facts: dict[str, str]
) -> None:
    """Write a network's state.

    Args:
        path: the file.
        kind: `denoiser` or `autoencoder`.
        module: the network; its floating-point tensors are stored as float16.
        config: JSON-able description from which the network can be built again.
        facts: further metadata, such as `licence`.
    """
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in module.state_dict().items()
    }
    metadata = {"format": FORMAT + kind, "config": json.dumps(config, sort_keys=True), **facts}
    save_file(state, path, metadata)


def read_metadata(weights: Weights, name: str, kind: str) -> dict[str, str]:
    """Return the metadata of a weights file, after checking its sha256 and its format.

    Args:
        weights: the file.
        name: its name among the recipe's `weights`, for messages.
        kind: the kind that it must be, `denoiser` or `autoencoder`.

    Raises:
        InputError: the file is missing, changed, or of another kind.
    """
    checked_sha256(name, weights)
    if kind == "autoencoder" and is_foreign(weights):
        return {"config": foreign_config(weights, name).model_dump_json()}
    if kind == "denoiser" and is_published(weights, "denoiser"):
        return {"config": json.dumps(read_published(weights, name).config)}
    try:
        with safe_open(_path(weights, name), "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"recipe field weights.{name}.location: {weights.location} is no "
            f"safetensors file ({error})"
        ) from error
    if metadata.get("format") != FORMAT + kind:
        raise InputError(
            f"recipe field weights.{name}.location: {weights.location} holds "
            f"{metadata.get('format', 'no stated format')!r}; accepted is {FORMAT + kind!r}"
        )
    return metadata


def load_state(
    weights: Weights, module: nn.Module, name: str, fresh: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Load a weights file into a network.

    Args:
        weights: the file.
        module: the network.
        name: its name among the recipe's `weights`, for messages.
        fresh: prefixes of parameters that keep their fresh values if the file has none of their
            name and shape. If any are given, tensors of the file that do not fit are ignored.

    Returns:
        Names of the parameters that kept their fresh values.

    Raises:
        InputError: the file does not fit.
    """
    if is_published(weights, name):
        state = read_published(weights, name).state
    elif is_foreign(weights):
        state = foreign_state(weights, name)
    else:
        state = load_file(_path(weights, name))
    left: tuple[str, ...] = ()
    if fresh:
        own = module.state_dict()
        state = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
        left = tuple(key for key in own if key not in state and key.startswith(fresh))
        state |= {key: own[key] for key in left}
    put_state(weights, module, name, state)
    return left


def put_state(weights: Weights, module: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Put the tensors of a weights file into a network; InputError where they do not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"recipe field weights.{name}.location: {weights.location} does not fit the network: "
            f"{' '.join(str(error).split())[:SAID]}"
        ) from error


def load_denoiser(
    weights: Weights, build: Callable[[dict[str, Any]], D]
) -> tuple[D, dict[str, Any]]:
    """Build the denoiser that a file describes, in evaluation mode.

    Args:
        weights: the file.
        build: makes the network from the file's `config`.

    Returns:
        The network, and the file's `config`: the network's sizes under `model`, and choices of its
        training such as the prediction type.
    """
    config = json.loads(read_metadata(weights, "denoiser", "denoiser")["config"])
    network = build(config)
    load_state(weights, network, "denoiser")
    return channels_last(network.eval().requires_grad_(False)), config


def check_foreign(
    weights: Weights, name: str, build: Callable[[dict[str, Any]], nn.Module] | None = None
) -> None:
    """Refuse a file of others that is not what its prefix says; ours are not looked at.

    Nothing is computed: the network is made without memory for its tensors.

    Args:
        weights: where it lies.
        name: its name among the recipe's `weights`, for messages.
        build: makes a denoiser's network from its config.

    Raises:
        InputError: the file is something else, or its tensors have other shapes than the network's.
    """
    if build is None:
        if is_foreign(weights):
            foreign_config(weights, name)
        return
    if not is_published(weights, name):
        return
    found = read_published(weights, name)
    with torch.device("meta"):
        wanted = build(found.config).state_dict()
    check_shapes(weights, name, wanted, found.state)


def check_shapes(
    weights: Weights, name: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Refuse the tensors of a file, `found`, that have other shapes than a network's, `wanted`."""
    for key, value in wanted.items():
        shape = tuple(found[key].shape) if key in found else "missing"
        if shape != tuple(value.shape):
            raise InputError(
                f"recipe field weights.{name}.location: {weights.location} does not fit the "
                f"network: what is {key} here is {shape}, accepted is {tuple(value.shape)}"
            )


def load_autoencoder(weights: Weights, size: int) -> Bottleneck | VQ | KL:
    """Build the autoencoder that a file describes, frozen and in evaluation mode.

    Args:
        weights: the file.
        size: height and width of the recipe's images. An autoencoder of others gets this size; one
            of our own files states its size itself.

    Raises:
        InputError: the file is missing, changed, or of another kind, or an autoencoder of others
            cannot halve images of this size evenly.
    """
    config = json.loads(read_metadata(weights, "autoencoder", "autoencoder")["config"])
    if is_foreign(weights):
        config["size"], least = size, 2 ** (len(config["widths"]) - 1)
        if size % least:
            raise InputError(
                f"recipe field image.size: {size}; {weights.location} accepts multiples of {least}"
            )
    network = make_autoencoder(autoencoder_config(config, f"{weights.location} model."))
    fresh = ENCODER if prefix_of(weights.location) == "ldm" else ()
    left = load_state(weights, network, "autoencoder", fresh)
    if isinstance(network, VQ):
        network.encodes = not left
    return channels_last(network.eval().requires_grad_(False))


def _path(weights: Weights, name: str) -> Path:
    return local_file(weights.location, f"recipe field weights.{name}.location", ACCEPTED)


def autoencoder_config(raw: dict[str, Any], what: str) -> AutoencoderConfig | VQConfig | KLConfig:
    """Validate an autoencoder's sizes; `kind` says which of the three autoencoders it is."""
    kind = raw.get("kind", "bottleneck")
    kinds = {"bottleneck": AutoencoderConfig, "vq": VQConfig, "kl": KLConfig}
    if kind not in kinds:
        raise InputError(f"{what}kind: {kind!r}; accepted: {', '.join(kinds)}")
    return checked(kinds[kind], raw, what)
