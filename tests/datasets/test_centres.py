from pathlib import Path

import numpy as np
import pytest
from faces import make_pool

from factory.datasets.centres import centre_cosines, pool_embeddings
from factory.datasets.embeddings import write_embeddings
from factory.datasets.index import contents, index
from factory.datasets.store import Store
from factory.recipe import InputError

SHA = "ab" * 32


class Means:
    """A recognizer whose embedding is the mean colour of each quarter of an image."""

    size = 32

    def __init__(self) -> None:
        self.images = 0

    def embed(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        quarters = images.reshape(len(images), 2, 16, 2, 16, 3).mean((2, 4))
        return quarters.reshape(len(images), -1).astype(np.float32)


def test_cosines_are_to_the_mean_of_the_others() -> None:
    draws = np.random.default_rng(0)
    vectors, labels = draws.normal(size=(40, 5)) * 3, draws.integers(0, 9, 40)
    labels[7] = 99
    found = centre_cosines(vectors, labels)
    for row, vector in enumerate(vectors):
        others = [
            v / np.linalg.norm(v)
            for other, v in enumerate(vectors)
            if labels[other] == labels[row] and other != row
        ]
        if not others:
            assert np.isnan(found[row])
            continue
        centre = np.mean(others, axis=0)
        right = vector @ centre / np.linalg.norm(vector) / np.linalg.norm(centre)
        assert abs(found[row] - right) < 1e-12
    assert np.isnan(found[7])


def test_each_image_is_embedded_once_and_new_shards_only(cache: Path, tmp_path: Path) -> None:
    store = Store(make_pool(tmp_path / "data", 6, 3, world=1, per=2))
    network = Means()

    def found() -> np.ndarray:
        shards = contents(store)
        return pool_embeddings(store, shards, index(store, shards), SHA, lambda: network)

    first = found()
    assert first.shape == (18, 12) and network.images == 18
    assert np.array_equal(found(), first) and network.images == 18
    make_pool(tmp_path / "data", 8, 3, world=1, per=2)
    assert np.array_equal(found()[:18], first) and network.images == 24


def test_embeddings_beside_the_shards_are_taken(tmp_path: Path) -> None:
    store = Store(make_pool(tmp_path / "data", 2, 2, world=1))
    shards = contents(store)
    [(name, tar)] = shards.items()
    held = index(store, shards)
    keys, vectors = [k.decode() for k in held.keys.tolist()], np.eye(4, dtype=np.float32)
    write_embeddings(store, name, tar, ("known", SHA), keys, vectors)

    def never() -> Means:
        raise AssertionError

    found = pool_embeddings(store, shards, held, SHA, never)
    assert np.array_equal(found, vectors)
    write_embeddings(store, name, tar, ("known", SHA), ["x", *keys[1:]], vectors)
    with pytest.raises(InputError, match=r"kept embeddings of shard .* belong to other images"):
        pool_embeddings(store, shards, held, SHA, never)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    store = Store(make_pool(tmp_path / "data", 2, 2, world=1, size=48))
    shards = contents(store)
    with pytest.raises(InputError, match=r"0000000_0000: 48 x 48 pixels, .* takes 32 x 32"):
        pool_embeddings(store, shards, index(store, shards), SHA, Means)
