"""Batches of labelled images, read at random from the shards of datasets or compositions.

The order of an epoch is a permutation keyed by seed and epoch, so that the step alone says which
images come next. A resumed training goes on with the next images of the same order. The number of
workers only decides which worker decodes which part of a global batch.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from factory.datasets.composition import is_composition, load_composition, local_shards, read_rows
from factory.datasets.decode import decode
from factory.datasets.index import Copies, Reader, contents, first_rows, index
from factory.datasets.store import Store
from factory.recipe import InputError, public
from factory.seeding import generator, seed64

AHEAD = 3  # batches that are decoded in advance


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
    """Reads images at random from committed shards; memory grows only with the index.

    Args:
        urls: datasets or compositions, local or remote; remote shards are copied to the cache once.
        batch_size: images of a global batch, over all workers.
        seed: the recipe's seed, which keys the order.
        size: height and width that every image must have.
        identities: use only the first N identities, counted over the datasets in order.
        images_each: use only the first N images of each identity, in key order.
        shuffle_labels: a control: permute the labels over all images.
        rank: this worker's number.
        world: number of workers; divides `batch_size`.
        resize: resize images of another size bilinearly instead of refusing them.

    Raises:
        InputError: there is no dataset, a shard differs from its manifest, a composition's pool has
            changed, a sample lacks its image or label, there are fewer images than one batch, or
            `world` does not divide `batch_size`.
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
        resize: bool = False,
    ) -> None:
        if batch_size % world:
            raise InputError(
                f"schedule.batch_size: {batch_size}; it must be a multiple of the {world} workers"
            )
        self.batch_size, self.seed = batch_size, seed
        self.size, self.resize = size, resize
        self.rank, self.world = rank, world
        self._reader = Reader()
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._paths: list[Path] = []
        self.classes = 0
        parts: list[Images] = []
        for url in urls:
            left = None if identities is None else identities - self.classes
            found = _chosen(images_of(Store(url)), left, images_each)
            named, labels = np.unique(found.labels, return_inverse=True)
            parts.append(found.numbered(labels + self.classes, len(self._paths)))
            self.classes += len(named)
            self._paths += found.paths
        read = ", ".join(map(public, urls))
        if identities is not None and self.classes < identities:
            raise InputError(f"data.identities: {identities}, but {read} has only {self.classes}")
        self.labels, self._keys, self._shards, self._offsets, self._sizes = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("labels", "keys", "shard", "offset", "size")
        )
        if len(self) < batch_size:
            raise InputError(
                f"data.train {read}: {len(self)} images; schedule.batch_size "
                f"{batch_size} needs at least as many"
            )
        if shuffle_labels:
            self.labels = generator(seed64(seed, "shuffled labels")).permutation(self.labels)

    def __len__(self) -> int:
        """Return the number of images of one epoch."""
        return len(self.labels)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of full global batches of an epoch; the other images are left out."""
        return len(self) // self.batch_size

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield this worker's part of the batches of global steps [start, stop).

        A thread reads and decodes in advance, so that a training does not wait for images.

        Raises:
            InputError: an image cannot be read or has another size; the message names its shard
                and key.
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
            except BaseException as error:  # the reading side raises it again
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
        keys = tuple(key.decode() for key in self._keys[rows].tolist())
        return Batch(step, images, self.labels[rows], keys, start)

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            draws = generator(seed64(self.seed, "epoch", slot=epoch))
            self._order = epoch, draws.permutation(len(self))
        return self._order[1]

    def _image(self, row: int) -> np.ndarray:
        path = self._paths[self._shards[row]]
        data = self._reader.read(path, int(self._offsets[row]), int(self._sizes[row]))
        what = f"{path}: image {self._keys[row].decode()}"
        try:
            image = decode(data)
        except ValueError as error:
            raise InputError(f"{what} cannot be read: {error}") from error
        if self.resize:
            return resized(image, self.size)
        if image.shape[:2] != (self.size, self.size):
            raise InputError(
                f"{what} is {image.shape[1]}x{image.shape[0]} pixels, image.size accepts "
                f"{self.size}x{self.size}; data.resize: true resizes them"
            )
        return image


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Return an image uint8 [H, W, 3] as uint8 [size, size, 3], by bilinear resizing."""
    if image.shape[:2] == (size, size):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Images:
    """The images of one dataset or composition, and their places in its shards.

    Attributes:
        paths: local paths of its shards.
        labels: int64 [N].
        keys: bytes [N].
        shard: int32 [N], row of `paths`.
        offset: int64 [N], in bytes.
        size: int32 [N], in bytes.
        repeat: int32 [N], how often an epoch holds the image.
    """

    paths: list[Path]
    labels: np.ndarray
    keys: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    repeat: np.ndarray

    def rows(self, rows: np.ndarray) -> "Images":
        """Return the images of some rows, in the order of `rows`."""
        arrays = (getattr(self, name)[rows] for name in ARRAYS)
        return Images(self.paths, *arrays)

    def numbered(self, labels: np.ndarray, first_path: int) -> "Images":
        """Return the images with new labels, and with `shard` counted from `first_path`."""
        return replace(self, labels=labels, shard=self.shard + first_path)


ARRAYS = ("labels", "keys", "shard", "offset", "size", "repeat")


def images_of(store: Store) -> Images:
    """Return the images of a dataset in the order of their keys, or those of a composition.

    Raises:
        InputError: there is neither, or its files differ from what its manifests state.
    """
    if is_composition(store):
        return _composed(store)
    shards = contents(store)
    paths = Copies(store, shards).fetch(tuple(shards))
    found = index(store, shards)
    once = np.ones(len(found), np.int32)
    return Images(
        paths, found.labels, found.keys, found.shard, found.offset, found.size, repeat=once
    )


def counted(
    urls: Sequence[str], identities: int | None = None, images_each: int | None = None
) -> tuple[int, int]:
    """Return how many images and identities a `Feed` of the same arguments has; copies no shard.

    Raises:
        InputError: there is no dataset, or its files differ from what its manifests state.
    """
    images = people = 0
    for store in map(Store, urls):
        if is_composition(store):
            rows = read_rows(store, load_composition(store))
            labels, repeat = rows.label, rows.repeat
        else:
            labels = index(store).labels
            repeat = np.ones(len(labels), np.int64)
        left = None if identities is None else identities - people
        chosen = first_rows(labels, left, images_each)
        images += int(repeat[chosen].sum())
        people += len(np.unique(labels[chosen]))
    return images, people


def _composed(store: Store) -> Images:
    composition = load_composition(store)
    rows = read_rows(store, composition)
    paths = local_shards(composition, rows)
    return Images(paths, rows.label, rows.key, rows.shard, rows.offset, rows.size, rows.repeat)


def _chosen(found: Images, identities: int | None, images_each: int | None) -> Images:
    """Return the first images of the first identities, each repeated as `found.repeat` says."""
    rows = first_rows(found.labels, identities, images_each)
    return found.rows(np.repeat(rows, found.repeat[rows]))
