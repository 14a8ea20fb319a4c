"""The index of a dataset: the place of every sample in its shards, for reading at random.

An index is made by reading the dataset once. It is kept on local disk under a name that follows
from the shards' sha256, so that it is made again only after the dataset has grown.
"""

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.datasets.manifest import (
    TAR,
    committed,
    load_shard_manifest,
    merged_sha256,
    shard_file,
)
from factory.datasets.patience import in_order
from factory.datasets.store import Store, cache_home
from factory.datasets.tar import TarError, members
from factory.recipe import InputError

IMAGES = ("jpg", "jpeg", "png")
FORMAT = "1"  # of the index files in the cache
OPEN_FILES = 256  # most open files of a reader; a dataset may have ten thousand shards

Contents = Mapping[str, str]


@dataclass(frozen=True)
class Index:
    """The N samples of a dataset, in the order of their keys.

    Attributes:
        shards: names of its committed shards, sorted.
        shard: int32 [N], row of `shards`.
        keys: bytes [N], ASCII (numpy's S type).
        labels: int64 [N], from the samples' `.cls`.
        offset: int64 [N], of the image in its tar, in bytes.
        size: int32 [N], of the image in bytes.
        sidecar_offset: int64 [N], of the JSON sidecar in its tar, in bytes.
        sidecar_size: int32 [N], of the sidecar in bytes; 0 if a sample has none.
    """

    shards: tuple[str, ...]
    shard: np.ndarray
    keys: np.ndarray
    labels: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    sidecar_offset: np.ndarray
    sidecar_size: np.ndarray

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)


COLUMNS = ("shard", "keys", "labels", "offset", "size", "sidecar_offset", "sidecar_size")


def contents(store: Store) -> dict[str, str]:
    """Return the sha256 of each committed shard's tar by the shard's name, sorted by name.

    Raises:
        InputError: no shard is committed.
    """
    names = sorted(committed(store))
    if not names:
        raise InputError(
            f"dataset {store.url}: no committed shards there; accepted is a dataset's folder or URL"
        )
    known = merged_sha256(store, names)

    def sha256(name: str) -> str:
        return known.get(name) or load_shard_manifest(store, name).sha256

    return dict(zip(names, in_order(sha256, names, store.workers), strict=True))


def index(store: Store, shards: Contents | None = None) -> Index:
    """Return the index of a dataset, from the cache if it is there.

    Args:
        store: the dataset, local or remote.
        shards: the sha256 of each shard to index; default: of all committed shards.

    Raises:
        InputError: no shard is committed, a shard differs from its manifest, or a sample lacks its
            image or label.
    """
    held = dict(sorted((contents(store) if shards is None else shards).items()))
    named = hashlib.sha256("\n".join((FORMAT, *map(" ".join, held.items()))).encode()).hexdigest()
    path = cache_home() / "indexes" / f"{named}.parquet"
    if path.is_file():
        return _loaded(path, tuple(held))
    found = _scanned(store, held)
    sink = io.BytesIO()
    pq.write_table(pa.table({name: getattr(found, name) for name in COLUMNS}), sink)
    try:
        Store(path.parent).write(path.name, sink.getvalue())
    except OSError as error:  # the next start makes the index again
        print(f"index of {store.url} not kept: {error}", flush=True)
    return found


class Copies:
    """Local paths of a dataset's shards; shards of a remote one are copied to the cache once."""

    def __init__(self, store: Store, shards: Contents) -> None:
        """Take the sha256 of each shard, which names its copy; copies nothing yet."""
        self.store, self.shards = store, shards
        self.folder = cache_home() / "shards"

    def path(self, name: str) -> Path:
        """Return the path of a local shard, or of a remote shard's copy."""
        if self.store.root is not None:
            return self.store.root / shard_file(name, TAR)
        return self.folder / f"{self.shards[name]}{TAR}"

    def fetch(self, names: Sequence[str]) -> list[Path]:
        """Copy remote shards that have no copy yet, and return the paths of all."""

        def fetched(name: str) -> Path:
            path = self.path(name)
            if self.store.root is None and not path.exists():
                self.store.fetch(shard_file(name, TAR), path)
            return path

        return list(in_order(fetched, names, self.store.workers))

    def open(self, name: str) -> IO[bytes]:
        """Open a shard for reading in order: the local file, the copy or the remote file."""
        path = self.path(name)
        return path.open("rb") if path.exists() else self.store.open_input(shard_file(name, TAR))


class Reader:
    """Reads pieces of many local files; at most `OPEN_FILES` of them are open at once."""

    def __init__(self) -> None:
        """Start without open files."""
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Return `size` bytes of a file from `offset` on, or fewer at the end of the file."""
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY)
        return os.pread(self._open[path], size, offset)

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])


def ranks(labels: np.ndarray) -> np.ndarray:
    """Return for each row how many earlier rows have the same label, int64 [N]."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    new = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(labels) else order
    found = np.empty(len(labels), np.int64)
    found[order] = np.arange(len(labels)) - np.repeat(new, np.diff(np.r_[new, len(labels)]))
    return found


def first_rows(
    labels: np.ndarray, identities: int | None = None, images_each: int | None = None
) -> np.ndarray:
    """Return the rows, int64 [n], of the first images of the first identities; None is all."""
    rows = np.arange(len(labels))
    if identities is not None:
        rows = rows[np.isin(labels, np.unique(labels)[: max(identities, 0)])]
    if images_each is not None:
        rows = rows[ranks(labels[rows]) < images_each]
    return rows


def _scanned(store: Store, held: dict[str, str]) -> Index:
    copies, names = Copies(store, held), tuple(held)

    def scan(number: int) -> list[np.ndarray]:
        return _samples(copies, names[number], number)

    parts = list(in_order(scan, range(len(names)), store.workers))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[COLUMNS.index("keys")], kind="stable")
    return Index(names, *(column[order] for column in columns))


def _samples(copies: Copies, name: str, number: int) -> list[np.ndarray]:
    """Return the columns of one shard's samples, in the order of `COLUMNS`."""
    what = f"dataset {copies.store.url} shard {name}"
    images: dict[str, tuple[int, int]] = {}
    sidecars: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    sha = hashlib.sha256()
    try:
        with copies.open(name) as file:
            for member in members(file, sha.update):
                if member.extension in IMAGES:
                    images[member.key] = member.offset, len(member.data)
                elif member.extension == "cls":
                    labels[member.key] = int(member.data)
                elif member.extension == "json":
                    sidecars[member.key] = member.offset, len(member.data)
    except (TarError, ValueError) as error:
        raise InputError(f"{what}: {error}; jobs/verify.py says more") from error
    if sha.hexdigest() != copies.shards[name]:  # else wrong places would stay in the cache
        raise InputError(
            f"{what}: sha256 {sha.hexdigest()}, its manifest says {copies.shards[name]}; "
            "jobs/verify.py --repair removes it, and generate makes it again"
        )
    for key in sorted(images.keys() ^ labels.keys()):
        lacks = "image" if key in labels else "label (.cls)"
        raise InputError(f"{what}: sample {key} has no {lacks}")
    places = np.array([images[key] for key in images], np.int64).reshape(-1, 2)
    beside = np.array([sidecars.get(key, (0, 0)) for key in images], np.int64).reshape(-1, 2)
    return [
        np.full(len(images), number, np.int32),
        np.array(list(images), np.bytes_),
        np.array([labels[key] for key in images], np.int64),
        places[:, 0],
        places[:, 1].astype(np.int32),
        beside[:, 0],
        beside[:, 1].astype(np.int32),
    ]


def _loaded(path: Path, names: tuple[str, ...]) -> Index:
    table = pq.read_table(path)
    return Index(names, *(column(table, name) for name in COLUMNS))


def column(table: pa.Table, name: str) -> np.ndarray:
    """Return a column of a table as a numpy array; texts and bytes as numpy's S type."""
    values = table[name]
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return values.to_numpy()
    return np.array(values.to_pylist(), np.bytes_)
