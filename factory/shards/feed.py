"""Batches of labelled images, read at random from the shards of one or several datasets.

The order of an epoch is a permutation keyed by seed and epoch. A place in the training is therefore
just its step: a resumed training goes on with the next image of the same order, and the number
of workers only decides who decodes which part of the same global batch.
"""

import io
import os
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from factory.recipe import InputError
from factory.seeding import generator, seed64
from factory.shards.manifest import TAR, committed, load_shard_manifest, shard_file
from factory.shards.store import Store
from factory.shards.tar import members

IMAGES = ("jpg", "jpeg", "png")
AHEAD = 3  # batches decoded before they are asked for


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global batch.

    Attributes:
        step: global step, from 0.
        images: uint8 [B, S, S, 3], RGB.
        labels: int64 [B], contiguous from 0 over all datasets.
        keys: B sample keys.
        start: position of the first image inside the global batch.
    """

    step: int
    images: np.ndarray
    labels: np.ndarray
    keys: tuple[str, ...]
    start: int


class Feed:
    """Reads images at random from committed shards, memory growing only with the index.

    Args:
        urls: datasets, local or remote; remote shards are copied to `cache` once.
        batch_size: images of a global batch, over all workers.
        seed: the recipe's seed, which keys the order.
        size: height and width every image must have.
        identities: use only the first N identities, counted over the datasets in order.
        images_each: use only the first N images of each identity, in key order.
        shuffle_labels: a control: deal the labels out anew, so that they carry nothing.
        rank: this worker's number.
        world: number of workers; divides `batch_size`.
        cache: folder of copies of remote shards; default `XDG_CACHE_HOME`, else `~/.cache`.

    Raises:
        InputError: there is no dataset, a sample lacks its image or label, the data are fewer than
            one batch, or `batch_size` does not divide by `world`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        batch_size: int,
        seed: int,
        size: int,
        identities: int | None = None,
        images_each: int | None = None,
        shuffle_labels: bool = False,
        rank: int = 0,
        world: int = 1,
        cache: Path | None = None,
    ) -> None:
        if batch_size % world:
            raise InputError(
                f"schedule.batch_size: {batch_size}; accepted are multiples of the {world} workers"
            )
        self.batch_size, self.seed, self.size = batch_size, seed, size
        self.rank, self.world = rank, world
        self._files: dict[Path, int] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._paths: list[Path] = []
        places: list[_Place] = []
        labels: list[int] = []
        self.classes = 0
        for url in urls:
            left = None if identities is None else identities - self.classes
            paths, found, identity = _index(Store(url), cache or _cache(), left, images_each)
            names = {name: self.classes + n for n, name in enumerate(sorted(set(identity)))}
            self.classes += len(names)
            labels += [names[name] for name in identity]
            places += [place._replace(shard=place.shard + len(self._paths)) for place in found]
            self._paths += paths
        if identities is not None and self.classes < identities:
            raise InputError(f"data.identities: {identities}; {', '.join(urls)} has {self.classes}")
        if len(places) < batch_size:
            raise InputError(
                f"data.train {', '.join(urls)}: {len(places)} images; schedule.batch_size "
                f"{batch_size} needs at least as many"
            )
        self._shards = np.array([place.shard for place in places], np.int32)
        self._offsets = np.array([place.offset for place in places], np.int64)
        self._sizes = np.array([place.size for place in places], np.int32)
        self._keys = np.array([place.key for place in places])
        self.labels = np.array(labels, np.int64)
        if shuffle_labels:
            self.labels = generator(seed64(seed, "shuffled labels")).permutation(self.labels)

    def __len__(self) -> int:
        """Return the number of images of one epoch."""
        return len(self.labels)

    @property
    def steps_per_epoch(self) -> int:
        """Return the full global batches of one epoch; what remains is left out of that epoch."""
        return len(self) // self.batch_size

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield this worker's part of the batches of global steps [start, stop).

        A thread reads and decodes ahead, so that a training does not wait for images.

        Raises:
            InputError: an image cannot be read or has another size; names shard and key.
        """
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(AHEAD)
        ended = threading.Event()

        def fill() -> None:
            try:
                for step in range(start, stop):
                    if ended.is_set():
                        return
                    ready.put(self.batch(step))
                ready.put(None)
            except BaseException as error:  # handed to the reader, which raises it
                ready.put(error)

        thread = threading.Thread(target=fill, name="feed", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ended.set()
            while thread.is_alive():
                try:
                    ready.get(timeout=0.01)
                except queue.Empty:
                    continue

    def batch(self, step: int) -> Batch:
        """Return this worker's part of the batch of a global step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        each = self.batch_size // self.world
        start = self.rank * each
        first = place * self.batch_size + start
        rows = self._epoch(epoch)[first : first + each]
        images = np.empty((each, self.size, self.size, 3), np.uint8)
        for number, row in enumerate(rows):
            images[number] = self._image(row)
        return Batch(step, images, self.labels[rows], tuple(self._keys[rows].tolist()), start)

    def close(self) -> None:
        """Close the shards."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            draws = generator(seed64(self.seed, "epoch", slot=epoch))
            self._order = epoch, draws.permutation(len(self))
        return self._order[1]

    def _image(self, row: int) -> np.ndarray:
        path = self._paths[self._shards[row]]
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        data = os.pread(self._files[path], int(self._sizes[row]), int(self._offsets[row]))
        what = f"{path}: image {self._keys[row]}"
        try:
            image = decode(data)
        except (ValueError, OSError) as error:
            raise InputError(f"{what} cannot be read: {error}") from error
        if image.shape[:2] != (self.size, self.size):
            raise InputError(
                f"{what} is {image.shape[1]}x{image.shape[0]} pixels, image.size accepts "
                f"{self.size}x{self.size}"
            )
        return image


def decode(data: bytes) -> np.ndarray:
    """Return a JPEG or PNG as uint8 [H, W, 3] RGB; ValueError or OSError when it is neither."""
    if simplejpeg.is_jpeg(data):
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


class _Place(NamedTuple):
    """Where an image lies: shard number, then bytes."""

    shard: int
    offset: int
    size: int
    key: str


def _index(
    store: Store, cache: Path, identities: int | None, images_each: int | None
) -> tuple[list[Path], list[_Place], list[int]]:
    """Return a dataset's shards, its chosen images and the identity of each."""
    paths, places, labels = [], [], []
    for name in sorted(committed(store)):
        paths.append(_local(store, name, cache))
        for place, label in _samples(paths[-1], len(paths) - 1):
            places.append(place)
            labels.append(label)
    if not places:
        raise InputError(
            f"data.train {store.url}: no committed shards there; accepted is a dataset"
        )
    chosen = set(sorted(set(labels))[:identities])
    seen: Counter[int] = Counter()
    rows = []
    for row in sorted(range(len(places)), key=lambda row: places[row].key):
        if labels[row] in chosen and (images_each is None or seen[labels[row]] < images_each):
            seen[labels[row]] += 1
            rows.append(row)
    return paths, [places[row] for row in rows], [labels[row] for row in rows]


def _samples(path: Path, shard: int) -> Iterator[tuple[_Place, int]]:
    places: dict[str, _Place] = {}
    labels: dict[str, int] = {}
    with path.open("rb") as file:
        for member in members(file):
            if member.extension in IMAGES:
                places[member.key] = _Place(shard, member.offset, len(member.data), member.key)
            elif member.extension == "cls":
                labels[member.key] = int(member.data)
    for key in sorted(places.keys() | labels.keys()):
        if key not in places or key not in labels:
            lacks = "image" if key not in places else "label (.cls)"
            raise InputError(f"{path}: sample {key} has no {lacks}")
        yield places[key], labels[key]


def _local(store: Store, name: str, cache: Path) -> Path:
    """Return a local path of a shard; copies of remote ones are named by their content."""
    if store.root is not None:
        return store.root / shard_file(name, TAR)
    path = cache / f"{load_shard_manifest(store, name).sha256}{TAR}"
    if not path.exists():
        store.fetch(shard_file(name, TAR), path)
    return path


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "face-data-factory" / "shards"
