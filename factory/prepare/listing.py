"""What a source holds: its images by person, each with the place it is read from."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from factory.datasets.store import Store
from factory.recipe import InputError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
    *(".tif", ".tiff", ".pgm", ".ppm", ".gif"),
)
FOLDER, RECORDIO, WEBDATASET, DATASET = "folder", "recordio", "webdataset", "dataset"
ZIP, PARQUET, LMDB = "zip", "parquet", "lmdb"
ACCEPTED = (
    "SOURCE/IDENTITY/IMAGE.jpg, X.rec with X.idx beside it, WebDataset tars with jpg or png and "
    "cls, zips of such folders, parquet with image and label, or LMDB; or a dataset; or images in "
    "any folders with --unlabelled"
)
RESOURCES = "__MACOSX"  # macOS keeps them there in archives
LONGEST_BYTES = 1 << 28  # of an encoded image
UNREADABLE_AT = -1  # offset of an image that is known to be none
SHOWN = 120  # characters of a name in a message
NUMBER = r"\d+(\.0+)?"


class Item(NamedTuple):
    """One image of a source.

    `offset` and `size` are bytes inside the file; a folder's image is its whole file, and a record
    states its own size. In parquet `offset` is a row. It is UNREADABLE_AT for what cannot be read.
    """

    file: str
    name: str
    offset: int = 0
    size: int = 0


@dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        kind: folder, recordio, webdataset, dataset, zip, parquet or lmdb.
        identities: what the source calls them, in the order of our labels.
        images: the images of each identity, in their order.
        ignored: files that are no images.
        digest: 16 hex digits of names, places and sizes.
        hidden: files that archives and notebooks left behind.
        notes: what else the user is to know, a line each.
    """

    kind: str
    identities: tuple[str, ...]
    images: tuple[tuple[Item, ...], ...]
    ignored: int
    digest: str
    hidden: int = 0
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Return the number of images."""
        return sum(map(len, self.images))


@dataclass(frozen=True)
class Labelling:
    """How the user says whose an image is.

    Attributes:
        label: `--label`: cls, txt, json:FIELD, column:NAME, folder, or a list's file; empty is
            what the kind of source usually has.
        level: `--identity-level`: the depth of the folder that is the person; None is the first.
        unlabelled: every image is a person of its own.
    """

    label: str = ""
    level: int | None = None
    unlabelled: bool = False


def is_image(name: str) -> bool:
    """Tell by its suffix whether a file is an image."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def is_hidden(name: str) -> bool:
    """Tell whether a file is what archives and notebooks leave behind, by any part of its name."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part == RESOURCES
        for part in name.split("/")
    )


def printable(name: str) -> str:
    """Return a name with escapes for the bytes in it that are no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(name: str) -> str:
    """Return a name for a message: printable, in one line, not longer than a line."""
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in printable(name))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def listed(
    store: Store,
    kind: str,
    found: Mapping[int, Sequence[Item]] | Mapping[str, Sequence[Item]],
    ignored: int,
    sizes: Iterable[int],
    hidden: int = 0,
    notes: Sequence[str] = (),
) -> Listing:
    """Return the listing of images by person, people in order; InputError where there are none."""
    if not found:
        left = f" but {hidden:,} hidden files" if hidden else ""
        raise InputError(f"SOURCE {store.url}: no images there{left}; accepted: {ACCEPTED}")
    people = sorted(found)
    images = tuple(tuple(found[person]) for person in people)  # type: ignore[index]
    names = tuple(printable(str(person)) for person in people)
    sha = hashlib.sha256(json.dumps([kind, list(sizes)]).encode())
    for name, entries in zip(names, images, strict=True):
        sha.update(json.dumps([name, entries]).encode())
    return Listing(kind, names, images, ignored, sha.hexdigest()[:16], hidden, tuple(notes))


def by_label(items: Iterable[tuple[str, Item]]) -> dict[int, list[Item]] | dict[str, list[Item]]:
    """Group images by the text of their labels: as integers where all of them are, else as names.

    `3` and `3.0` are the integer 3; `03` is one only where no name stands beside it.
    """
    import re

    named: dict[str, list[Item]] = {}
    for label, item in items:
        named.setdefault(label, []).append(item)
    if not all(re.fullmatch(NUMBER, name, re.ASCII) for name in named):
        return named
    numbered: dict[int, list[Item]] = {}
    for name, entries in named.items():
        numbered.setdefault(int(name.partition(".")[0]), []).extend(entries)
    return numbered


def by_folder(
    names: Iterable[str], how: Labelling, what: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Group images by the folder that is their person.

    Args:
        names: of the images, parted by slashes, in their order.
        how: the level; with the label `folder` equal names at it are one person.
        what: names the source in errors.

    Returns:
        The images of each person, and lines for the user.

    Raises:
        InputError: images lie above the level, or nobody said which level it is.
    """
    level, merge = how.level or 1, how.label == "folder"
    found: dict[str, list[str]] = {}
    loose: list[str] = []
    inner: dict[str, str] = {}  # a first folder without images of its own, and a folder inside it
    direct: set[str] = set()
    for name in names:
        parts = name.split("/")
        if merge and how.level is None:
            level = max(1, len(parts) - 1)
        if len(parts) <= level:
            loose.append(name)
            continue
        if len(parts) == 2:
            direct.add(parts[0])
        else:
            inner.setdefault(parts[0], "/".join(parts[:2]))
        found.setdefault(parts[level - 1] if merge else "/".join(parts[:level]), []).append(name)
    if loose:
        where = "no identity's folder" if level == 1 else f"no folder of level {level}"
        raise InputError(
            f"{what}: {len(loose)} images, as {shown(loose[0])}, lie in {where}; accepted: "
            f"{ACCEPTED}"
        )
    asked = next((top for top in inner if top not in direct), None)
    if asked is not None and how.level is None and not merge:
        deeper = shown(inner[asked])
        raise InputError(
            f"{what}: {shown(asked)} holds no image itself, its folders do, as {deeper}; who is "
            f"the person? accepted is --identity-level 1 ({shown(asked)} is one person), "
            f"--identity-level 2 ({deeper} is one), or --label folder (the innermost folder is, "
            "and equal names are one person)"
        )
    return found, list(_repeated(found)) if level > 1 and not merge else []


def _repeated(people: Iterable[str]) -> Iterator[str]:
    """Yield a line where people of different folders have one name."""
    first: dict[str, str] = {}
    count, pair = 0, ("", "")
    for person in people:
        name = person.rpartition("/")[2]
        other = first.setdefault(name, person)
        if other != person:
            count, pair = count + 1, (other, person)
    if count:
        yield (
            f"{shown(pair[0])} and {shown(pair[1])} are two people here, and so {count:,} times; "
            "--label folder takes equal names for one"
        )
