"""Provenance: the models and libraries that made a dataset's pixels, and their licences."""

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TypeVar

import factory
from factory.datasets import catalog
from factory.datasets.licences import strictest
from factory.datasets.located import find_file, local_file
from factory.datasets.store import parted
from factory.recipe import (
    FOREIGN,
    BankRecipe,
    GenerateRecipe,
    InputError,
    Part,
    Weights,
    prefix_of,
    public,
    with_options,
)

DIGITAL_SOURCE_TYPE = "trainedAlgorithmicMedia"  # IPTC's term for an image made by a trained model
ACCEPTED = f"accepted is a file of weights, others' as {', '.join(f'{p}:FILE' for p in FOREIGN)}"
OURS = "face-data-factory/"  # beginning of the format that our own files state
RECOGNIZER = "recognizer.safetensors"  # the file to read if a location is a folder
PIXEL_LIBRARIES = ("numpy", "torch", "diffusers", "simplejpeg", "opencv-python", "pillow")
RUN_BY = ("transformers",)  # prefixes of weights that are libraries, too
R = TypeVar("R", GenerateRecipe, BankRecipe)


class Model(Part):
    """A model that touched a dataset."""

    name: str
    location: str
    sha256: str
    licence: str


class Inherited(Part):
    """The models and licences that a dataset inherits from the datasets it draws from."""

    models: tuple[Model, ...] = ()
    licences: tuple[str, ...] = ()


def models(weights: Mapping[str, Weights]) -> tuple[Model, ...]:
    """Return the models that a recipe names, with the sha256 and licence of their files.

    Raises:
        InputError: a file is missing, or its sha256 is not the one that the recipe states.
    """
    return tuple(
        Model(
            name=name,
            location=public(part.location),
            sha256=checked_sha256(name, part),
            licence=licence_of(part, f"recipe field weights.{name}.location"),
        )
        for name, part in sorted(weights.items())
    )


def licence_of(weights: Weights, what: str) -> str:
    """Return the licence of a network: the recipe's, or its file's if that is stricter.

    The file's licence is the one in its metadata, else the catalog's for its publisher. The option
    `licence=NAME` of a location replaces both, because it belongs to this file, whereas the
    recipe's licence may be left from a location that was overridden.

    Args:
        weights: the file, or a reference such as `insightface:NAME`.
        what: the name of the location in errors.

    Raises:
        InputError: the location is a URL that cannot be read.
    """
    known = with_options(weights.location)[1].get("licence") or _known(weights.location, what)
    return strictest([weights.licence, known]) if known else weights.licence


def _known(location: str, what: str) -> str:
    """Return the licence that a file states or the catalog knows; "" if neither does."""
    file = find_file(location, what, RECOGNIZER)
    if file is not None and file.suffix == ".safetensors" and (stated := _stated(file)):
        return stated
    place = parted(with_options(location)[0])[0].rpartition(":")[2]
    entry = catalog.entry_of(PurePosixPath(place))
    return entry.licence if entry else ""


def _stated(file: Path) -> str:
    """Return the licence in the metadata of one of our files; "" for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            facts = opened.metadata() or {}
    except SafetensorError:  # the loader reports a damaged file
        return ""
    if not facts.get("format", "").startswith(OURS):
        return ""
    return facts.get("licence") or json.loads(facts.get("config", "{}")).get("licence", "")


def pinned(recipe: R) -> R:
    """Return the recipe with the sha256 of all its weights; missing ones are read from the files.

    A dataset must name the weights that make it. Otherwise, if somebody replaced a file, a resumed
    run would finish the dataset with other weights.

    Raises:
        InputError: a file whose sha256 is not stated is missing.
    """
    stated = {
        name: part.model_copy(update={"sha256": part.sha256 or checked_sha256(name, part)})
        for name, part in recipe.weights.items()
    }
    return recipe.model_copy(update={"weights": stated})


def checked_sha256(name: str, weights: Weights) -> str:
    """Return the sha256 of a file of weights, 64 hex digits, after a comparison with the recipe's.

    A file behind a URL is first fetched to this node's cache. If the recipe states no sha256, any
    file is accepted.

    Raises:
        InputError: the file is missing, or its sha256 is not the one that the recipe states.
    """
    field = f"recipe field weights.{name}"
    found = sha256_file(local_file(weights.location, f"{field}.location", ACCEPTED))
    if weights.sha256 and weights.sha256 != found:
        raise InputError(
            f"{field}.sha256: {weights.sha256}, but {public(weights.location)} has {found}; "
            "accepted is the file the recipe was written for, or the new sha256"
        )
    return found


def sha256_file(path: str | Path) -> str:
    """Return the sha256 of a file as 64 lower-case hex digits, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(weights: Mapping[str, Weights] = MappingProxyType({})) -> dict[str, str]:
    """Return the installed versions of the libraries that compute pixels, by name.

    Nothing is imported. A library that is not installed is left out. The factory's own entry is the
    last version that changed a recipe's images (`factory.PIXELS`).

    Args:
        weights: networks of the recipe; some are run by a library that others do without.
    """
    found = {"factory": factory.PIXELS}
    used = {prefix_of(part.location) for part in weights.values()}
    return found | _installed((*PIXEL_LIBRARIES, *(name for name in RUN_BY if name in used)))


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those libraries that are installed, by name."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def check_versions(stated: Mapping[str, str]) -> dict[str, str]:
    """Return this node's versions, after a check that they equal those where the run was started.

    The part after a `+` may differ: `2.13.0+cpu` where the run was started and `2.13.0` on nodes
    with GPUs are builds of one version.

    Args:
        stated: the result of `versions` where the run was started.

    Raises:
        InputError: a library has another version here, or is not installed.
    """
    here = _installed(stated) | {"factory": factory.PIXELS}
    for name, wanted in stated.items():
        found = here.get(name, "not installed")
        if found.partition("+")[0] != wanted.partition("+")[0]:
            raise InputError(
                f"{name}: {found} on node {socket.gethostname()}, but {wanted} where the run was "
                "started, which the dataset would state; accepted are equal versions on all nodes"
            )
    return {name: here[name] for name in stated}
