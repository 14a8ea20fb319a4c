"""Verification pairs that somebody listed, as a `.bin` file: LFW's text form, or two paths and 0/1.

LFW's lines are `NAME N M` (two images of one person) and `NAME N OTHER M`, after a line of counts;
image N of NAME is `NAME/NAME_000N`. Other lists have two paths and 1 for one person, 0 for two, in
CSV or parted by blanks. The order of the pairs is kept: it is part of a protocol.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from factory.datasets.composition import is_composition
from factory.datasets.decode import JPEG_MAGIC, PNG_MAGIC
from factory.datasets.index import Copies, Reader, contents, index
from factory.datasets.manifest import committed
from factory.datasets.store import Store
from factory.evaluation.verification import FOLDS, write_bin
from factory.recipe import InputError
from factory.recognition.images import decode

SUFFIXES = (".jpg", ".png", ".jpeg")
COUNTS = re.compile(r"\d+(\s+\d+)?")
ACCEPTED = (
    "accepted are LFW's lines NAME N M and NAME N OTHER M, or CSV of two paths and 0 or 1, or the "
    "number of pairs to draw"
)
SHOWN = 120  # characters of a line in a message


@dataclass(frozen=True)
class ListedPair:
    """Names of two images, without their suffix where a list gives none; whether they are one's."""

    one: str
    two: str
    same: bool


@dataclass(frozen=True)
class Packed:
    """What a file of listed pairs holds."""

    sha256: str
    pairs: int
    images: int


def read_pairs(path: Path) -> list[ListedPair]:
    """Read a list of pairs.

    Raises:
        InputError: no such file, a line of another form, or too few pairs to be measured.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"--pairs {path}: no text in UTF-8; {ACCEPTED}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--pairs {str(path)[:SHOWN]}: {why}; {ACCEPTED}") from None
    try:
        pairs = list(_parsed(text, f"--pairs {path}"))
    except csv.Error as error:
        raise InputError(f"--pairs {path}: {error}; {ACCEPTED}") from None
    genuine = sum(pair.same for pair in pairs)
    if len(pairs) < FOLDS or genuine in (0, len(pairs)):
        raise InputError(
            f"--pairs {path}: {len(pairs)} pairs, {genuine} of one person; accepted are {FOLDS} "
            "or more, of both kinds"
        )
    return pairs


def _parsed(text: str, what: str) -> Iterator[ListedPair]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    lines: Iterator[tuple[int, list[str]]]
    if "," in first:
        rows = enumerate(csv.reader(io.StringIO(text)), 1)
        lines = ((number, [cell.strip() for cell in row]) for number, row in rows)
    else:
        lines = ((number, line.split()) for number, line in enumerate(text.splitlines(), 1))
    begun = False
    for number, cells in lines:
        if not any(cells):
            continue
        pair = _pair(cells)
        if pair is None:
            if not begun and (_is_head(cells) or COUNTS.fullmatch(" ".join(cells))):
                begun = True
                continue
            said = " ".join(cells)[:SHOWN]
            raise InputError(f"{what}: line {number} is {said!r}; {ACCEPTED}")
        begun = True
        yield pair


def _pair(cells: list[str]) -> ListedPair | None:
    """Return the pair of a line; None where it has another form."""
    numbers = [cell.isascii() and cell.isdecimal() and len(cell) < 10 for cell in cells]
    if len(cells) == 3 and numbers[1:] == [True, True] and not _is_path(cells[0]):
        name = cells[0]
        return ListedPair(_lfw(name, cells[1]), _lfw(name, cells[2]), True)
    if len(cells) == 4 and numbers[1] and numbers[3]:
        return ListedPair(_lfw(cells[0], cells[1]), _lfw(cells[2], cells[3]), False)
    if len(cells) == 3 and cells[2] in ("0", "1") and cells[0] and cells[1]:
        return ListedPair(cells[0], cells[1], cells[2] == "1")
    return None


def _lfw(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}"


def _is_path(cell: str) -> bool:
    return "/" in cell or cell.lower().endswith(SUFFIXES)


def _is_head(cells: list[str]) -> bool:
    return len(cells) == 3 and not any(_is_path(cell) or cell.isdecimal() for cell in cells)


def write_listed_pairs(store: Store, to: Path, path: Path) -> Packed:
    """Write a benchmark file of listed pairs; images are copied as they are.

    Args:
        store: a folder of images that the list's paths lie in, or a dataset: there a name is a
            sample's key, or the name that the source it was prepared from gave the image.
        to: the `.bin` file; an older one is replaced.
        path: the list.

    Raises:
        InputError: as `read_pairs`; or an image is not there, or is no JPEG or PNG.
    """
    pairs = read_pairs(path)
    if is_composition(store):
        raise InputError(f"--pairs {path}: {store.url} is a composition; accepted is a dataset")
    images = _Samples(store) if any(committed(store)) else _Files(store)
    read: dict[str, bytes] = {}
    absent: list[str] = []
    for pair in pairs:
        for name in (pair.one, pair.two):
            if name in read:
                continue
            data = images.read(name)
            if data is None:
                absent.append(name)
                continue
            what = f"--pairs {path}: image {name[:SHOWN]}"
            if not data.startswith((JPEG_MAGIC, PNG_MAGIC)):
                raise InputError(f"{what} of {store.url}: not an image; accepted is JPEG or PNG")
            decode(data, what)
            read[name] = data
    if absent:
        count = len(dict.fromkeys(absent))
        raise InputError(
            f"--pairs {path}: {count:,} images, as {absent[0][:SHOWN]}, are not in {store.url}; "
            f"accepted are {images.accepted}"
        )
    files = [read[name] for pair in pairs for name in (pair.one, pair.two)]
    sha256 = write_bin(to, files, [pair.same for pair in pairs])
    return Packed(sha256, len(pairs), len(read))


class _Files:
    """Images in a folder, by path with or without suffix."""

    accepted = "paths below that folder, with or without .jpg or .png"

    def __init__(self, store: Store) -> None:
        self.store = store
        if store.root is not None and not store.root.is_dir():
            raise InputError(
                f"URL {store.url}: no such folder; accepted is a dataset, or a folder of images"
            )

    def read(self, name: str) -> bytes | None:
        """Return an image; None where there is none of this name."""
        path = name.replace("\\", "/").removeprefix("./")
        root = self.store.root
        if root is not None:
            path = path.removeprefix(f"{root.as_posix()}/")
        for suffix in ("", *SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)):
            try:
                if self.store.exists(path + suffix):
                    return self.store.read(path + suffix)
            except (OSError, ValueError):  # no name a file can have
                return None
        return None


class _Samples:
    """Images of a dataset, by key or by the name they had before they were prepared."""

    accepted = "keys of samples, or the names their sidecars state as source"

    def __init__(self, store: Store) -> None:
        held = contents(store)
        self._index = index(store, held)
        paths = Copies(store, held).fetch(self._index.shards)
        self._paths, self._reader = paths, Reader()
        self._rows: dict[str, int] = {}
        for row, key in enumerate(self._index.keys.tolist()):
            self._rows[key.decode()] = row
        for row in range(len(self._index)):
            if source := self._source(row):
                self._rows.setdefault(source, row)
                self._rows.setdefault(str(PurePosixPath(source).with_suffix("")), row)

    def read(self, name: str) -> bytes | None:
        """Return an image; None where there is none of this name."""
        row = self._rows.get(name.removeprefix("./"))
        if row is None:
            return None
        found = self._index
        return self._piece(row, int(found.offset[row]), int(found.size[row]))

    def _source(self, row: int) -> str:
        size = int(self._index.sidecar_size[row])
        if not size:
            return ""
        try:
            told = json.loads(self._piece(row, int(self._index.sidecar_offset[row]), size))
        except ValueError:
            return ""
        source = told.get("source", "") if isinstance(told, Mapping) else ""
        return source if isinstance(source, str) and PurePosixPath(source).name else ""

    def _piece(self, row: int, offset: int, size: int) -> bytes:
        return self._reader.read(self._paths[self._index.shard[row]], offset, size)
