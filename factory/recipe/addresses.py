"""Addresses of files and folders: paths, URLs, package:PATH and the prefixes of weights."""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, unquote

from pydantic import AfterValidator

from factory.recipe.errors import InputError

# What a query value's name is made of, word by word, where the value is a secret: S3's, Google's
# and Azure's signatures among them. `author`, `keyboard` and `sassy` are no such words.
SECRET = ("key", "sig", "auth", "authorization", "jwt", "sas", "pass", "pwd", "bearer")
ENDINGS = ("secret", "token", "password", "passwd", "passphrase", "credential", "signature")
BESIDE = (  # what stands before or after such a word without a mark between them
    *("access", "account", "api", "app", "aws", "client", "google", "id", "my", "o", "private"),
    *("refresh", "session", "shared", "ssl", "subscription", "user", "x"),
)
SIGNED = ("x-amz-", "x-goog-")  # all of these belong to a signature
_GLUED = re.compile(
    rf"(?:{'|'.join(BESIDE)})*(?:{'|'.join((*SECRET, *ENDINGS))})"
    rf"(?:{'|'.join((*SECRET, *ENDINGS, *BESIDE))})*s?"
)
_NAME = re.compile(r"(?<=[?&;#])([^=&;?#\s'\"]+)=")
_VALUE = re.compile(r"[^&\s'\"]*")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Keys may hold slashes: what follows user: is one up to the @, unless it is a port.
_KEYED_USER = re.compile(r"(?<=://)[^/@\s'\"]*:(?!\d+/)[^@\s'\"]*@")
_USER = re.compile(r"(?<=://)[^/@\s'\"]*@")


def public(address: str) -> str:
    """Return a text whose addresses are safe to show: no user, password or secret query values.

    Everything that shows an address goes through here: errors, logs, JSON, cards and MLflow.
    """
    text = _USER.sub("", _KEYED_USER.sub("", address))
    shown, at = "", 0
    for name in _NAME.finditer(text):
        value = _VALUE.match(text, name.end())
        if value is not None and name.start() >= at and _is_secret(name[1]):
            shown, at = f"{shown}{text[at : name.end()]}...", value.end()
    return shown + text[at:]


def _is_secret(name: str) -> bool:
    """Tell from the name of a query value, as `X-Amz-Credential` or `apiKey`, whether it is one."""
    name = unquote(name)
    runs = re.findall(r"[A-Za-z]+", name)
    words = [word.lower() for run in runs for word in (run, *_WORD.findall(run))]
    return name.lower().startswith(SIGNED) or any(
        _GLUED.fullmatch(word) or word.removesuffix("s").endswith(ENDINGS) for word in words
    )


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
