"""Addresses of files and folders: paths, URLs, package:PATH and the prefixes of weights."""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl

from pydantic import AfterValidator

from factory.recipe.errors import InputError

# Names of query values that are secrets, in part: S3's, Google's and Azure's signatures among them.
SECRET = (
    *("key", "secret", "token", "sig", "password", "passwd", "pwd", "credential", "auth"),
    *("x-amz-", "x-goog-", "jwt", "sas"),
)
_QUERY = re.compile(rf"(?i)([?&;][^=&\s]*(?:{'|'.join(SECRET)})[^=&\s]*=)[^&\s'\"]*")
# Keys may hold slashes: what follows user: is one up to the @, unless it is a port.
_KEYED_USER = re.compile(r"(?<=://)[^/@\s'\"]*:(?!\d+/)[^@\s'\"]*@")
_USER = re.compile(r"(?<=://)[^/@\s'\"]*@")


def public(address: str) -> str:
    """Return a text whose addresses are safe to show: no user, password or secret query values.

    Everything that shows an address goes through here: errors, logs, JSON, cards and MLflow.
    """
    return _QUERY.sub(r"\1...", _USER.sub("", _KEYED_USER.sub("", address)))


def keyless(address: str, *, what: str = "") -> str:
    """Return the address if it holds no credentials, so that it may be written to files.

    A user name without a password is accepted, but in http and https, where it is a token: Azure
    puts the container there, and public buckets put `anonymous` there.

    Args:
        address: a path or URL.
        what: words before the message of an error, such as "--out ".

    Raises:
        InputError: the address holds a password or a secret query value.
    """
    named = re.sub(r"(?<!http://)(?<!https://)(?<=://)[^/:@]*@", "", address)
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
    *("diffusers", "transformers", "ldm", "dcface", "idiff_face"),
)
OPTIONS = (  # of such weights and of other references: FILE?option=value
    *("channels", "download", "licence", "name", "names", "pixels"),
    *("argument", "range", "size"),
)
DECIDING = ("channels", "names", "pixels")  # change what a network computes; in content digests


def local_path(location: str) -> Path:
    """Return the path of a location on local disk; `factory.datasets.located` also fetches URLs.

    `package:` is relative to the installed factory package. For other projects' weights, such as
    `adaface:FILE?channels=bgr`, the path is that of FILE.
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
    """Return the file's own address, without the prefix and options of other projects' weights."""
    prefix, colon, rest = location.partition(":")
    return with_options(rest)[0] if colon and prefix in FOREIGN else location


def with_options(text: str) -> tuple[str, dict[str, str]]:
    """Split FILE?option=value&option=value into the file and its options.

    Parts of a URL's query that are not in `OPTIONS`, such as endpoint_override, stay with the URL.
    """
    file, _, query = text.partition("?")
    given = query.split("&") if query else []
    own = [part for part in given if "://" in file and part.partition("=")[0] not in OPTIONS]
    options = parse_qsl("&".join(part for part in given if part not in own), keep_blank_values=True)
    return "?".join([file, "&".join(own)] if own else [file]), dict(options)
