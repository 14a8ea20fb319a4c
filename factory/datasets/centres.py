"""Embeddings of a pool under a recognizer, and each image's cosine to its centre.

Embeddings beside a dataset's shards are read. Missing ones are computed and kept in a local cache,
in the same form, one file a shard. After growth or an interruption only the new shards are
computed.
"""

from collections.abc import Callable, Iterator

import numpy as np

from factory.datasets.decode import decode
from factory.datasets.embeddings import Embedder, embeddings_file, read_embeddings, write_embeddings
from factory.datasets.index import IMAGES, Contents, Copies, Index
from factory.datasets.store import Store, cache_home
from factory.datasets.tar import members
from factory.recipe import InputError

BATCH = 256


def pool_embeddings(
    store: Store,
    shards: Contents,
    index: Index,
    recognizer_sha256: str,
    load: Callable[[], Embedder],
    say: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """Return the raw embeddings of a dataset's images, float32 [N, D], in the order of its index.

    Args:
        store: the dataset.
        shards: the sha256 of each shard's tar.
        index: the index of its N > 0 samples.
        recognizer_sha256: sha256 of the recognizer's weights.
        load: loads the recognizer; called only if a shard's embeddings must be computed.
        say: receives a line of progress for each shard that is computed.

    Raises:
        InputError: an image cannot be read, or has another size than the recognizer takes.
    """
    kept, copies = Store(cache_home()), Copies(store, shards)
    found: np.ndarray | None = None
    for number, name in enumerate(index.shards):
        rows, tar = np.flatnonzero(index.shard == number), shards[name]
        if not len(rows):
            continue
        if store.exists(embeddings_file(recognizer_sha256, name)):
            keys, vectors = read_embeddings(store, name, tar, recognizer_sha256)
        else:
            if not kept.exists(embeddings_file(recognizer_sha256, tar)):
                say(f"embedding {store.url}: shard {number + 1} of {len(index.shards)}")
                made = _computed(copies, name, load())
                write_embeddings(kept, tar, tar, ("", recognizer_sha256), *made)
            keys, vectors = read_embeddings(kept, tar, tar, recognizer_sha256)
        if not np.array_equal(np.array(keys, np.bytes_), index.keys[rows]):
            raise InputError(
                f"dataset {store.url}: the kept embeddings of shard {name} belong to other images; "
                f"delete {embeddings_file(recognizer_sha256, name)}, and they are computed again"
            )
        if found is None:
            found = np.empty((len(index), vectors.shape[1]), np.float32)
        found[rows] = vectors
    assert found is not None
    return found


def centre_cosines(embedded: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cosine of each image to its centre, float64 [N]; NaN if there is no centre.

    The centre is the mean of the unit embeddings of the identity's other images. There is none if
    the identity has one image, or if the other images' embeddings sum to zero.

    Args:
        embedded: raw embeddings, [N, D].
        labels: int64 [N].
    """
    cosines = np.full(len(labels), np.nan)
    order = np.argsort(labels, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(rows) > 1:
            own = embedded[rows].astype(np.float64)
            own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
            others = own.sum(axis=0) - own
            length = np.linalg.norm(others, axis=1)
            there = length > 0
            along = np.einsum("ij,ij->i", own[there], others[there])
            cosines[rows[there]] = along / length[there]
    return cosines


def _computed(copies: Copies, name: str, recognizer: Embedder) -> tuple[list[str], np.ndarray]:
    """Return the keys of a shard's images and their embeddings, float32 [N, D]."""
    keys: list[str] = []
    parts: list[np.ndarray] = []
    batch: list[np.ndarray] = []
    for key, image in _images(copies, name, recognizer.size):
        keys.append(key)
        batch.append(image)
        if len(batch) == BATCH:
            parts.append(recognizer.embed(np.stack(batch)))
            batch = []
    if batch:
        parts.append(recognizer.embed(np.stack(batch)))
    return keys, np.concatenate(parts).astype(np.float32)


def _images(copies: Copies, name: str, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the key of each image of a shard and its pixels, in the order of the tar."""
    with copies.open(name) as file:
        for member in members(file):
            if member.extension not in IMAGES:
                continue
            what = f"dataset {copies.store.url} sample {member.key}"
            try:
                image = decode(member.data)
            except (ValueError, OSError) as error:
                raise InputError(f"{what}: cannot be read: {error}") from error
            if image.shape[:2] != (size, size):
                raise InputError(
                    f"{what}: {image.shape[1]} x {image.shape[0]} pixels, the recognizer takes "
                    f"{size} x {size}"
                )
            yield member.key, image
