"""Samples of a finished dataset, read back in order, and their embeddings."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.datasets.manifest import TAR, committed, load_shard_manifest, merged_sha256, shard_file
from factory.datasets.store import Store
from factory.datasets.tar import Member, TarError, grouped, members
from factory.recipe import FaultError, InputError
from factory.recognition.images import BATCH, NamedEmbedder, decode, fitted, normalized

IMAGES = ("jpg", "png")
PLANNED = re.compile(r"i(\d+)-")  # a planned shard's name starts with its first identity


@dataclass(frozen=True)
class StoredSample:
    """One sample of a shard.

    Attributes:
        key: its key, unique in the dataset.
        label: its identity.
        encoded: the image, JPEG or PNG.
        sidecar: the content of its sidecar; empty without one.
    """

    key: str
    label: int
    encoded: bytes
    sidecar: dict[str, Any]


@dataclass(frozen=True)
class Embedded:
    """The embeddings of a dataset under one recognizer.

    Attributes:
        unit: float32 [N, D], rows of unit length; add them up in float64.
        labels: int64 [N].
        keys: the samples' keys, in the order of the rows.
    """

    unit: np.ndarray
    labels: np.ndarray
    keys: tuple[str, ...]


def samples(
    store: Store, identities: int | None = None, images_each: int | None = None
) -> Iterator[StoredSample]:
    """Yield the samples of all committed shards, in the order of their names.

    Args:
        store: the dataset.
        identities: use only labels below this.
        images_each: use only this many first samples of each label.

    Raises:
        InputError: there is no committed shard, or a sample lacks its label or image.
        FaultError: a shard is damaged, or not what its manifest says.
    """
    names = sorted(committed(store))
    if not names:
        raise InputError(f"dataset {store.url}: no finished shard; accepted is a dataset's folder")
    merged_sha256(store, names)  # refuses a dataset that lost a shard
    seen: Counter[int] = Counter()
    for name in names:
        start = PLANNED.match(name)
        if start and identities is not None and int(start[1]) >= identities:
            continue
        for sample in shard_samples(store, name):
            if identities is not None and sample.label >= identities:
                if start:
                    break  # labels rise inside a planned shard
                continue
            seen[sample.label] += 1
            if images_each is None or seen[sample.label] <= images_each:
                yield sample


def finished(url: str) -> Store:
    """Return the dataset at a folder or URL, after reading its first sample.

    Raises:
        InputError: as `samples`.
    """
    store = Store(url)
    next(samples(store), None)
    return store


def image_batches(
    store: Store,
    size: int,
    batch_size: int,
    identities: int | None = None,
    images_each: int | None = None,
    resize: bool = False,
) -> Iterator[tuple[list[StoredSample], np.ndarray]]:
    """Yield samples in batches, in order, with their images, uint8 [B, size, size, 3].

    Raises:
        InputError: as `samples`; or there is no sample, an image cannot be read, or it has another
            size and `resize` is off.
    """
    count = 0
    for batch, images in with_images(
        store, samples(store, identities, images_each), size, batch_size, resize
    ):
        count += len(batch)
        yield batch, images
    if not count:
        raise InputError(f"dataset {store.url}: no sample with a label below {identities}")


def with_images(
    store: Store, found: Iterable[StoredSample], size: int, batch_size: int, resize: bool
) -> Iterator[tuple[list[StoredSample], np.ndarray]]:
    """Yield samples in batches, in order, with their images; InputError as `image_batches`."""
    left = iter(found)
    while batch := list(itertools.islice(left, batch_size)):
        named = [(f"dataset {store.url} sample {sample.key}", sample) for sample in batch]
        images = (fitted(decode(s.encoded, what), size, what, resize) for what, s in named)
        yield batch, np.stack(list(images))


def embed_dataset(
    store: Store,
    recognizer: NamedEmbedder,
    identities: int | None = None,
    images_each: int | None = None,
    resize: bool = False,
    batch_size: int = BATCH,
) -> Embedded:
    """Embed a dataset, each image once and without mirror images.

    Images are streamed. The embeddings of the whole selection are in memory, 4 x N x D bytes.

    Raises:
        InputError: as `image_batches`, or the recognizer returns numbers that are not finite.
    """
    found = embedded(store, samples(store, identities, images_each), recognizer, resize, batch_size)
    if not found.keys:
        raise InputError(f"dataset {store.url}: no sample with a label below {identities}")
    return found


def embedded(
    store: Store,
    found: Iterable[StoredSample],
    recognizer: NamedEmbedder,
    resize: bool,
    batch_size: int = BATCH,
) -> Embedded:
    """Embed samples of a dataset in their order, a batch at a time; InputError as `embed_dataset`.

    The last bits of an embedding depend on its batch, so equal batches give equal embeddings.
    """
    parts: list[np.ndarray] = []
    labels: list[int] = []
    keys: list[str] = []
    for batch, images in with_images(store, found, recognizer.size, batch_size, resize):
        unit = normalized(recognizer.embed(images).astype(np.float64))
        broken = ~np.isfinite(unit).all(axis=1)
        if broken.any():
            raise InputError(
                f"dataset {store.url} sample {batch[int(np.argmax(broken))].key}: recognizer "
                f"{recognizer.name} gives numbers that are not finite"
            )
        parts.append(unit.astype(np.float32))
        labels += [sample.label for sample in batch]
        keys += [sample.key for sample in batch]
    unit = joined(parts) if parts else np.zeros((0, 0), np.float32)
    return Embedded(unit, np.array(labels, dtype=np.int64), tuple(keys))


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """Join rows and free each part after its copy, so that memory does not double."""
    rows = sum(len(part) for part in parts)
    joined = np.empty((rows, parts[0].shape[1]), parts[0].dtype)
    while parts:
        part = parts.pop()
        rows -= len(part)
        joined[rows : rows + len(part)] = part
    return joined


def shard_samples(store: Store, name: str) -> Iterator[StoredSample]:
    """Yield the samples of a shard; its end tells whether it is the one that was committed."""
    sha, where = hashlib.sha256(), f"dataset {store.url} shard {name}"
    try:
        with store.open_input(shard_file(name, TAR)) as file:
            for key, found in grouped(members(file, sha.update)):
                yield _sample(f"dataset {store.url} shard {name} sample {key}", key, found)
        committed_as = load_shard_manifest(store, name).sha256
    except TarError as error:
        raise FaultError(f"{where}: {error}; jobs/verify.py names every fault") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise FaultError(f"{where}: {error}; jobs/verify.py names every fault") from None
    if sha.hexdigest() != committed_as:
        raise FaultError(f"{where}: not what its manifest says; jobs/verify.py names every fault")


def _sample(what: str, key: str, run: list[Member]) -> StoredSample:
    found = {member.extension: member.data for member in run}
    image = next((found[kind] for kind in IMAGES if kind in found), None)
    if image is None or "cls" not in found:
        has = ", ".join(sorted(found))
        raise InputError(f"{what}: it has {has}; accepted is cls with jpg or png")
    label = found["cls"]
    if not label.isdigit():
        raise FaultError(f"{what}: its label is {label[:20]!r}; accepted is an integer, 0 or more")
    try:
        told = json.loads(found.get("json", b"{}"))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise FaultError(f"{what}: its sidecar is no JSON object")
    return StoredSample(key, int(label), image, told)
