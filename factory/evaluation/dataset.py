"""Samples of a finished dataset, read back in order, and their embeddings."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.datasets.manifest import TAR, committed, load_shard_manifest, shard_file
from factory.datasets.store import Store
from factory.datasets.tar import Member, TarError, members
from factory.recipe import FaultError, InputError
from factory.recognition.images import NamedEmbedder, decode, fitted, normalized

IMAGES = ("jpg", "png")
BATCH = 256  # images that are embedded at once
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
        InputError: as `samples`; or an image has another size than the recognizer takes, or the
            recognizer returns numbers that are not finite.
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
    batch: list[np.ndarray] = []

    def embed() -> None:
        unit = normalized(recognizer.embed(np.stack(batch)).astype(np.float64))
        broken = ~np.isfinite(unit).all(axis=1)
        if broken.any():
            key = keys[len(keys) - len(batch) + int(np.argmax(broken))]
            raise InputError(
                f"dataset {store.url} sample {key}: recognizer {recognizer.name} gives numbers "
                "that are not finite"
            )
        parts.append(unit.astype(np.float32))
        batch.clear()

    for sample in found:
        what = f"dataset {store.url} sample {sample.key}"
        batch.append(fitted(decode(sample.encoded, what), recognizer.size, what, resize))
        labels.append(sample.label)
        keys.append(sample.key)
        if len(batch) == batch_size:
            embed()
    if batch:
        embed()
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
            found: dict[str, Member] = {}
            for member in members(file, sha.update):
                if found and member.key != next(iter(found.values())).key:
                    yield _sample(store, name, found)
                    found = {}
                found[member.extension] = member
            if found:
                yield _sample(store, name, found)
        committed_as = load_shard_manifest(store, name).sha256
    except TarError as error:
        raise FaultError(f"{where}: {error}; jobs/verify.py names every fault") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise FaultError(f"{where}: {error}; jobs/verify.py names every fault") from None
    if sha.hexdigest() != committed_as:
        raise FaultError(f"{where}: not what its manifest says; jobs/verify.py names every fault")


def _sample(store: Store, shard: str, found: dict[str, Member]) -> StoredSample:
    key = next(iter(found.values())).key
    image = next((found[kind].data for kind in IMAGES if kind in found), None)
    if image is None or "cls" not in found:
        raise InputError(
            f"dataset {store.url} shard {shard} sample {key}: it has {', '.join(sorted(found))}; "
            "accepted is cls with jpg or png"
        )
    label, sidecar = found["cls"].data, found["json"].data if "json" in found else b"{}"
    if not label.isdigit():
        raise FaultError(
            f"dataset {store.url} shard {shard} sample {key}: its label is {label[:20]!r}; "
            "accepted is an integer, 0 or more"
        )
    try:
        told = json.loads(sidecar)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise FaultError(
            f"dataset {store.url} shard {shard} sample {key}: its sidecar is no JSON object"
        )
    return StoredSample(key, int(label), image, told)
