"""Where a dataset comes from: the models and libraries that made its pixels, and their licences."""

import hashlib
import json
import socket
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
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
    public,
    with_options,
)

DIGITAL_SOURCE_TYPE = "trainedAlgorithmicMedia"  # IPTC's term for an image made by a trained model
ACCEPTED = f"accepted is a file of weights, others' as {', '.join(f'{p}:FILE' for p in FOREIGN)}"
OURS = "face-data-factory/"  # begins the format that files of ours state
RECOGNIZER = "recognizer.safetensors"  # of a folder that holds one
PIXEL_LIBRARIES = ("numpy", "torch", "diffusers", "simplejpeg", "opencv-python", "pillow")
R = TypeVar("R", GenerateRecipe, BankRecipe)


class Model(Part):
    """A model that touched a dataset."""

    name: str
    location: str
    sha256: str
    licence: str


class Inherited(Part):
    """What a dataset takes over from the datasets its images are drawn from."""

    models: tuple[Model, ...] = ()
    licences: tuple[str, ...] = ()


def models(weights: Mapping[str, Weights]) -> tuple[Model, ...]:
    """Return the models a recipe names, with sha256 and licence of the files as they lie there.

    Raises:
        InputError: a file is missing, or is not the one whose sha256 the recipe states.
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
    """Return the licence of a network: the recipe's, or a stricter one that is known of its file.

    Known is what the file's own metadata states, else what the catalog says of its publisher.
    `licence=NAME` among the location's options stands in for both: it belongs to this file, where
    the recipe's may be left from the one that a location was put in place of.

    Args:
        weights: the file, or a reference such as `insightface:NAME`.
        what: names the location in errors.

    Raises:
        InputError: the location is a URL that cannot be read.
    """
    known = with_options(weights.location)[1].get("licence") or _known(weights.location, what)
    return strictest([weights.licence, known]) if known else weights.licence


def _known(location: str, what: str) -> str:
    """Return the licence that a file states or the catalog knows; empty where neither does."""
    file = find_file(location, what, RECOGNIZER)
    if file is not None and file.suffix == ".safetensors" and (stated := _stated(file)):
        return stated
    place = parted(with_options(location)[0])[0].rpartition(":")[2]
    entry = catalog.entry_of(PurePosixPath(place))
    return entry.licence if entry else ""


def _stated(file: Path) -> str:
    """Return the licence in the metadata of a file of ours; empty for a file of others."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            facts = opened.metadata() or {}
    except SafetensorError:  # whoever loads it says what it should have been
        return ""
    if not facts.get("format", "").startswith(OURS):
        return ""
    return facts.get("licence") or json.loads(facts.get("config", "{}")).get("licence", "")


def pinned(recipe: R) -> R:
    """Return a recipe that states the sha256 of all its weights, reading those it leaves open.

    What is made must name the weights it was made with: otherwise others that take their place
    under the same location would go on with a dataset that is half done.

    Raises:
        InputError: a file that has to be read is missing.
    """
    stated = {
        name: part.model_copy(update={"sha256": part.sha256 or checked_sha256(name, part)})
        for name, part in recipe.weights.items()
    }
    return recipe.model_copy(update={"weights": stated})


def checked_sha256(name: str, weights: Weights) -> str:
    """Return the sha256 of a file of weights, 64 hex digits, having compared it with the recipe's.

    A file behind a URL is fetched to this node's cache first. Where the recipe states no sha256,
    whatever lies there is taken, from disk or from a URL.

    Raises:
        InputError: the file is missing, or its sha256 is not the one the recipe states.
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


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that compute pixels, by name; no imports.

    A library that is not installed computes no pixels and is left out. Of the factory itself it is
    the version that last changed what a recipe's images are.
    """
    found = {"factory": factory.PIXELS}
    for name in PIXEL_LIBRARIES:
        version = _version(name)
        if version is not None:
            found[name] = version
    return found


def check_versions(stated: Mapping[str, str]) -> dict[str, str]:
    """Return this node's versions, having refused to work with others than the run began with.

    What follows a `+` may differ: `2.13.0+cpu` where the run was started and `2.13.0` on nodes with
    GPUs are builds of one version.

    Args:
        stated: versions by name, as `versions` returned them where the run was started.

    Raises:
        InputError: a library has another version here, or is not installed.
    """
    found = {}
    for name, wanted in stated.items():
        here = factory.PIXELS if name == "factory" else _version(name)
        if here is None or here.partition("+")[0] != wanted.partition("+")[0]:
            raise InputError(
                f"{name}: {here or 'not installed'} on node {socket.gethostname()}, but {wanted} "
                "where the run was started, which the dataset would state; accepted are equal "
                "versions on all nodes"
            )
        found[name] = here
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
