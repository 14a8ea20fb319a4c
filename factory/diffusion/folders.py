"""Networks as diffusers and transformers save them: a file of weights, config.json beside it.

A location names the file, `diffusers:FOLDER/diffusion_pytorch_model.safetensors`; FOLDER may be a
URL. A recipe's sha256 is of the file. So what its tensors' shapes do not show must have the value
that is built here, or a config could be changed under an unchanged sha256.
"""

import json
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from factory.datasets.located import find_file, local_file
from factory.datasets.store import parted
from factory.recipe import InputError, Weights, prefix_of, with_options

CONFIG = "config.json"


def read_config(weights: Weights, field: str, accepted: str) -> tuple[dict[str, Any], Path]:
    """Return the config beside a file of weights, and its path.

    Args:
        weights: the file of weights.
        field: begins errors, such as "recipe field weights.denoiser.location".
        accepted: ends them.

    Raises:
        InputError: there is none, it is no JSON object, or the location has an unknown option.
    """
    options = with_options(weights.location.partition(":")[2])[1]
    unknown = [option for option in options if option != "licence"]
    if unknown:
        raise InputError(
            f"{field}: option {', '.join(unknown)}; {prefix_of(weights.location)}: accepts "
            "licence=NAME"
        )
    path = local_file(_beside(weights), field, accepted)
    try:
        raw = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{field}: {path} is not JSON ({error}); {accepted}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{field}: {path} is no JSON object; {accepted}")
    return raw, path


def class_of(weights: Weights, name: str) -> str:
    """Return the class that the config beside a file of weights states; empty where none does.

    Args:
        weights: the file of weights.
        name: its name among the recipe's `weights`, for messages.

    Raises:
        InputError: the URL cannot be read.
    """
    path = find_file(_beside(weights), f"recipe field weights.{name}.location")
    try:
        raw = json.loads(path.read_text()) if path else {}
    except ValueError:  # who reads the config says so
        raw = {}
    return str(raw.get("_class_name", "")) if isinstance(raw, dict) else ""


def check_fields(
    raw: Mapping[str, Any], wanted: Mapping[str, Any], read: Sequence[str], where: str
) -> None:
    """Refuse a config that lacks a size, or has a field of another value than is built here.

    Args:
        raw: the config; names that begin with _ say nothing of the network.
        wanted: the values that are built.
        read: names of the sizes, which whoever calls takes from the config.
        where: begins errors: the field and the config's path; what is accepted follows it.
    """
    lacking = [name for name in read if name not in raw]
    if lacking:
        raise InputError(f"{where} states no {lacking[0]}")
    for name, value in raw.items():
        if name.startswith("_") or name in read:
            continue
        if name not in wanted:
            raise InputError(f"{where} has {name} {value!r}, which is not known here")
        built = wanted[name]
        if value != (list(built) if isinstance(built, tuple) else built):
            raise InputError(f"{where} has {name} {value!r}; accepted is {built!r}")


def _beside(weights: Weights) -> str:
    place, query = parted(with_options(weights.location.partition(":")[2])[0])
    return posixpath.join(posixpath.dirname(place), CONFIG) + query
