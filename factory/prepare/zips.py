"""Zips of images, as DigiFace, EDM and StyleGAN ship them: read where they lie, never unpacked."""

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from factory.datasets.store import Store
from factory.prepare.folders import gathered
from factory.prepare.labels import Labels, Row, json_rows
from factory.prepare.listing import (
    LONGEST_BYTES,
    UNREADABLE_AT,
    ZIP,
    Item,
    Labelling,
    Listing,
    is_hidden,
    is_image,
    shown,
)
from factory.recipe import InputError

LABELS = "dataset.json"  # of EDM and StyleGAN
ENCRYPTED = 1  # a member's flag
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError),
    *(NotImplementedError, RuntimeError, OverflowError, IndexError, KeyError),
)
WHOLE = "accepted are whole zips that are not encrypted"


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turn what zipfile raises of a damaged zip into InputError."""
    try:
        yield
    except DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: no zip that can be read ({error}); {WHOLE}") from None


def directory(file: IO[bytes], what: str) -> zipfile.ZipFile:
    """Return a zip with its directory read; InputError if it is damaged."""
    with damage(what):
        return zipfile.ZipFile(file)


def list_zips(store: Store, zips: list[str], how: Labelling, labels: Labels | None) -> Listing:
    """List the images of zips: by `dataset.json` where one lies inside, else by folder.

    Raises:
        InputError: a zip is damaged or encrypted, or two of them have a folder of one name.
    """
    items: dict[str, Item] = {}
    ignored = hidden = 0
    rows: list[Row] = []
    apart = len(zips) > 1 and how.level is not None
    owner: dict[str, str] = {}
    for name in zips:
        what = f"SOURCE {store.url}/{name}"
        with store.open_random(name) as file, directory(file, what) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if is_hidden(member.filename):
                    hidden += 1
                    continue
                if not is_image(member.filename):
                    ignored += 1
                    if member.filename.rpartition("/")[2] == LABELS:
                        rows += _stylegan(archive, member, what)
                    continue
                _claim(owner, member.filename, name, apart or how.label != "", what)
                path = f"{name}/{member.filename}" if apart else member.filename
                if path in items and items[path].file != name:
                    path = f"{name}/{member.filename}"
                items[path] = _item(name, member)
    if apart and how.level is not None:
        how = Labelling(how.label, how.level + 1, how.unlabelled)
    if labels is None and rows and not how.unlabelled and how.label != "folder":
        labels = Labels(LABELS, tuple(rows))
    names, sizes = sorted(items), [store.size(name) for name in zips]
    lost = [ignored, sizes, hidden]
    return gathered(store, ZIP, names, items.__getitem__, how, labels, *lost)


def _claim(owner: dict[str, str], path: str, name: str, apart: bool, what: str) -> None:
    """Note whose a first folder is; InputError where another zip has it and nobody said so."""
    top = path.partition("/")[0]
    other = owner.setdefault(top, name)
    if other != name and not apart and "/" in path:
        raise InputError(
            f"{what}: folder {shown(top)} is in {other} too; accepted is --label folder (equal "
            "names are one person) or --identity-level 1 (people of each zip are others)"
        )


def _item(name: str, member: zipfile.ZipInfo) -> Item:
    if member.flag_bits & ENCRYPTED:
        raise InputError(f"SOURCE {name}: {shown(member.filename)} is encrypted; {WHOLE}")
    at = member.header_offset if member.file_size <= LONGEST_BYTES else UNREADABLE_AT
    return Item(name, member.filename, at, member.file_size)


def _stylegan(archive: zipfile.ZipFile, member: zipfile.ZipInfo, what: str) -> Iterator[Row]:
    """Yield the labels of EDM's and StyleGAN's zips; none where they have none."""
    inside = f"{what}: {shown(member.filename)}"
    if member.file_size > 16 * LONGEST_BYTES:
        raise InputError(f"{inside} has {member.file_size:,} bytes; accepted are labels")
    with damage(what):
        told = archive.read(member)
    try:
        content = json.loads(told)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{inside}: no JSON ({error}); accepted are labels") from None
    if isinstance(content, dict) and content.get("labels") is None:
        return
    folder = member.filename.rpartition("/")[0]
    for row in json_rows(content, inside):
        yield Row(None, f"{folder}/{row.path}" if folder else row.path, row.label)


class ZipReader:
    """Reads members of one zip by where they lie."""

    def __init__(self, file: IO[bytes], what: str) -> None:
        """Read the zip's directory."""
        self.what = what
        self._zip = directory(file, what)
        self._members = {member.header_offset: member for member in self._zip.infolist()}

    def read(self, offset: int) -> bytes:
        """Return a member; empty where its bytes are damaged, since it is one image of many."""
        member = self._members.get(offset)
        if member is None:
            raise InputError(f"{self.what}: no member at byte {offset}; it was listed otherwise")
        try:
            with self._zip.open(member) as file:
                return file.read(LONGEST_BYTES)
        except DAMAGED:
            return b""
