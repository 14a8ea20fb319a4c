"""Addresses of files and folders: paths, URLs, package:PATH and the prefixes of weights."""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl

from pydantic import AfterValidator

from factory.recipe.errors import InputError


def public(address: str) -> str:
    """Return an address without user, password or secret query values, fit to be shown."""
    address = re.sub(r"(?<=://)[^/@]*@", "", address)
    secret = r"(?i)([?&][^=&]*(?:key|secret|token|sig|password)[^=&]*=)[^&]*"
    return re.sub(secret, r"\1...", address)


def keyless(address: str, *, what: str = "") -> str:
    """Return an address that may be kept; InputError, begun with `what`, where it holds keys.

    A user without a password is none: a container of Azure's, `anonymous` of a public bucket.
    """
    named = re.sub(r"(?<=://)[^/:@]*@", "", address)
    if public(named) != named:
        raise InputError(
            f"{what}{public(address)} holds credentials, which manifests, cards and records would "
            "keep; accepted is a URL without, and credentials in the environment"
        )
    return address


def _all_keyless(addresses: str | tuple[str, ...]) -> str | tuple[str, ...]:
    for address in (addresses,) if isinstance(addresses, str) else addresses:
        keyless(address)
    return addresses


Address = Annotated[str, AfterValidator(keyless)]
Addresses = Annotated[str | tuple[str, ...], AfterValidator(_all_keyless)]
FOREIGN = (  # prefixes of weights others made
    *("onnx", "arcface_torch", "adaface", "magface", "mobilefacenet"),
    *("diffusers", "ldm", "dcface", "idiff_face"),
)
OPTIONS = (  # of such weights and of other references: FILE?option=value
    *("channels", "download", "licence", "name", "names", "pixels"),
    *("argument", "range", "size"),
)
DECIDING = ("channels", "names", "pixels")  # what a network computes, in a content digest


def local_path(location: str) -> Path:
    """Resolve a location on local disk; `factory.datasets.located` finds what lies behind URLs too.

    `package:` is relative to the installed factory package; of weights of others, as
    `adaface:FILE?channels=bgr`, it is the file that counts.
    """
    file = file_of(location)
    if file.startswith("package:"):
        return Path(str(resources.files("factory"))) / file.removeprefix("package:")
    return Path(file.removeprefix("file://"))


def prefix_of(location: str) -> str:
    """Return the prefix of a location of weights others made; empty where it has none."""
    prefix, colon, _ = location.partition(":")
    return prefix if colon and prefix in FOREIGN else ""


def file_of(location: str) -> str:
    """Return the file of a location: its own address, without the prefix and options of others'."""
    prefix, colon, rest = location.partition(":")
    return with_options(rest)[0] if colon and prefix in FOREIGN else location


def with_options(text: str) -> tuple[str, dict[str, str]]:
    """Split FILE?option=value&option=value into the file and its options.

    What the query of a URL says beyond `OPTIONS` stays with it, such as endpoint_override.
    """
    file, _, query = text.partition("?")
    given = query.split("&") if query else []
    own = [part for part in given if "://" in file and part.partition("=")[0] not in OPTIONS]
    options = parse_qsl("&".join(part for part in given if part not in own), keep_blank_values=True)
    return "?".join([file, "&".join(own)] if own else [file]), dict(options)
