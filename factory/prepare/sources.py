"""Sources of existing faces: a folder for each identity, RecordIO files, WebDataset tars, datasets.

A source is listed once, in an order that depends on its names alone. Reading an image needs only
its entry, so that any actor can read any part. Labels of a dataset are 0 to K-1 in the order of the
source's identities: folders are sorted by name, numbers by value.
"""

import hashlib
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from factory.datasets.claim import CLAIM
from factory.datasets.manifest import MANIFEST, load_manifest
from factory.datasets.recordio import LARGEST_LABEL
from factory.datasets.store import Store, parted
from factory.prepare import recordio
from factory.recipe import InputError, public

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FOLDER, RECORDIO, WEBDATASET, DATASET = "folder", "recordio", "webdataset", "dataset"
OPEN_FILES = 64
ACCEPTED = (
    "SOURCE/IDENTITY/IMAGE.jpg, X.rec with X.idx beside it, or WebDataset tars with jpg or png and "
    "cls; or a dataset; or images in any folders with --unlabelled"
)


class Item(NamedTuple):
    """One image of a source.

    `offset` and `size` are in bytes inside the file. An image of a folder is a whole file, and a
    record states its own size; both leave `size` at 0.
    """

    file: str
    name: str
    offset: int = 0
    size: int = 0


@dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        kind: folder, recordio, webdataset or dataset.
        identities: the source's names of its identities, in the order of our labels.
        images: the images of each identity, in their order.
        ignored: number of files that are not images.
        digest: 16 hex digits of names, places and sizes.
    """

    kind: str
    identities: tuple[str, ...]
    images: tuple[tuple[Item, ...], ...]
    ignored: int
    digest: str

    @property
    def count(self) -> int:
        """Return the number of images."""
        return sum(map(len, self.images))


def list_source(source: str, unlabelled: bool = False) -> tuple[Store, Listing]:
    """Detect the kind of a source and list its images.

    Args:
        source: a folder or URL, a `.rec` or a `.tar` file, or a finished dataset.
        unlabelled: take every image of a folder, at any depth, for a person of its own.

    Returns:
        The store from which entries are read, and the listing.

    Raises:
        InputError: the source is missing, has no images, is damaged or of an unknown kind.
    """
    place, query = parted(source)
    path = PurePosixPath(place)
    labelled = InputError(f"SOURCE {public(source)}: --unlabelled; accepted is a folder of images")
    if path.suffix in (".rec", ".tar"):
        if unlabelled:
            raise labelled
        folder = place[: -len(path.name)].rstrip("/") or ("/" if place[0] == "/" else ".")
        store = Store(folder + query)
        if not store.exists(path.name):
            raise InputError(f"SOURCE {public(source)}: no such file; accepted: {ACCEPTED}")
        return store, _listed(store, [path.name])
    store = Store(source)
    if store.root is not None and not store.root.is_dir():
        raise InputError(f"SOURCE {public(source)}: no such folder; accepted: {ACCEPTED}")
    if store.exists(MANIFEST) and store.exists(CLAIM):
        if unlabelled:
            raise labelled
        return store, _dataset(store)
    sizes = store.sizes()
    names = sorted(sizes)
    top = [name for name in names if "/" not in name]
    packed = [name for name in top if name.endswith((".rec", ".tar"))]
    if not packed:
        return store, _folder(store, {name: sizes[name] for name in names}, unlabelled)
    if unlabelled:
        raise labelled
    return store, _listed(store, packed)


def _listed(store: Store, packed: list[str]) -> Listing:
    if packed[0].endswith(".tar") and all(name.endswith(".tar") for name in packed):
        return _webdataset(store, packed)
    if len(packed) > 1:
        raise InputError(
            f"SOURCE {store.url}: {', '.join(packed[:4])}; accepted is one .rec file (name it) or "
            "tars alone"
        )
    return _recordio(store, packed[0])


def _folder(store: Store, files: dict[str, int], unlabelled: bool) -> Listing:
    found: dict[str, list[Item]] = defaultdict(list)
    ignored, loose, sizes = 0, [], []
    for name, size in files.items():
        if PurePosixPath(name).suffix.lower() not in SUFFIXES:
            ignored += 1
        elif "/" not in name and not unlabelled:
            loose.append(name)
        else:
            found[name if unlabelled else name.partition("/")[0]].append(Item(name, name))
            sizes.append(size)
    if loose:
        raise InputError(
            f"SOURCE {store.url}: {len(loose)} images, as {loose[0]}, lie in no identity's folder; "
            f"accepted: {ACCEPTED}"
        )
    return _listing(store, FOLDER, sorted(found), found, ignored, sizes)


def _recordio(store: Store, rec: str) -> Listing:
    what = f"SOURCE {store.url}/{rec}"
    found: dict[int, list[Item]] = defaultdict(list)
    for key, offset, label in recordio.image_records(store, rec):
        if not (label == label and 0 <= label <= LARGEST_LABEL and label == int(label)):
            raise InputError(
                f"{what}: record {key} has label {label}; accepted are integers 0 to "
                f"{LARGEST_LABEL}"
            )
        found[int(label)].append(Item(rec, str(key), offset))
    return _listing(store, RECORDIO, sorted(found), found, 0, [store.size(rec)])


def _dataset(store: Store) -> Listing:
    tars = [f"shards/{shard.name}.tar" for shard in load_manifest(store).shards]
    if absent := next((name for name in tars if not store.exists(name)), ""):
        raise InputError(
            f"SOURCE {store.url}: {absent} is not there; accepted is a dataset with its own shards "
            "(a composition gets them by --materialise)"
        )
    return _webdataset(store, tars, DATASET)


def _webdataset(store: Store, tars: list[str], kind: str = WEBDATASET) -> Listing:
    found: dict[int, list[Item]] = defaultdict(list)
    ignored, sizes = 0, []
    for name in tars:
        sizes.append(store.size(name))
        for label, entry in _samples(store, name):
            if entry is None:
                ignored += 1
            else:
                found[label].append(entry)
    return _listing(store, kind, sorted(found), found, ignored, sizes)


def _samples(store: Store, name: str) -> Iterator[tuple[int, Item | None]]:
    """Yield (label, image) for each sample of a tar, and (-1, None) for each other member."""
    what = f"SOURCE {store.url}/{name}"
    images: dict[str, Item] = {}
    labels: dict[str, int] = {}
    try:
        with store.open_random(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if f".{extension.lower()}" in SUFFIXES:
                    if key in images:
                        raise InputError(f"{what}: sample {key} has two images; accepted is one")
                    images[key] = Item(name, member.name, member.offset_data, member.size)
                elif extension == "cls":
                    content = tar.extractfile(member)
                    assert content is not None
                    labels[key] = _label(content.read(), f"{what}: {member.name}")
                else:
                    yield -1, None
    except tarfile.TarError as error:
        raise InputError(
            f"{what}: {error}; accepted are whole tars that are not compressed"
        ) from None
    for key in sorted(images.keys() | labels.keys()):
        if key not in images or key not in labels:
            lacks = "image" if key not in images else "label (.cls)"
            raise InputError(f"{what}: sample {key} has no {lacks}; accepted are samples with both")
        yield labels[key], images[key]


def _label(data: bytes, what: str) -> int:
    try:
        label = int(data)
    except ValueError:
        label = -1
    if label < 0:
        raise InputError(f"{what} is {data[:20]!r}; accepted is an integer, 0 or more")
    return label


def _listing(
    store: Store, kind: str, order: list, found: dict, ignored: int, sizes: Iterable[int]
) -> Listing:
    if not found:
        raise InputError(f"SOURCE {store.url}: no images there; accepted: {ACCEPTED}")
    images = tuple(tuple(found[identity]) for identity in order)
    names = tuple(str(identity) for identity in order)
    sha = hashlib.sha256(json.dumps([kind, list(sizes)]).encode())
    for name, entries in zip(names, images, strict=True):
        sha.update(json.dumps([name, entries]).encode())
    return Listing(kind, names, images, ignored, sha.hexdigest()[:16])


class ItemReader:
    """Reads the images of a source by their entries, and keeps its files open."""

    def __init__(self, store: Store, kind: str) -> None:
        """Take the store and the kind of a listing."""
        self.store, self.kind = store, kind
        self._files: dict[str, IO[bytes]] = {}

    def read(self, entry: Item) -> bytes:
        """Return the encoded image.

        Raises:
            InputError: the RecordIO file ends inside the image.
            FileNotFoundError: the file was removed after it was listed.
        """
        if self.kind == FOLDER:
            return self.store.read(entry.file)
        file = self._open(entry.file)
        what = f"SOURCE {self.store.url}/{entry.file}"
        if self.kind == RECORDIO:
            return recordio.parse(recordio.read_payload(file, entry.offset, what), what).image
        file.seek(entry.offset)
        return file.read(entry.size)

    def _open(self, name: str) -> IO[bytes]:
        if name not in self._files:
            if len(self._files) >= OPEN_FILES:
                self.close()
            self._files[name] = self.store.open_random(name)
        return self._files[name]

    def close(self) -> None:
        """Close all open files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
