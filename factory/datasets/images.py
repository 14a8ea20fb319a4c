"""The images of a dataset, read at random.

A recipe names a dataset by where it lies and by the digest of what it holds; only the digest enters
the content digest of what is made from it.
"""

import json
from collections.abc import Sequence

import numpy as np

from factory.datasets.decode import decode
from factory.datasets.index import Copies, Reader, contents, index, ranks
from factory.datasets.store import Store
from factory.recipe import InputError, NamedDataset, digest, local_path


def contents_digest(store: Store) -> str:
    """Return 16 hex digits naming what a dataset holds: its shards and their sha256."""
    return digest(dict(sorted(contents(store).items())))


class ImageBank:
    """The images of a dataset, in the order of their keys; shards are copied or opened when needed.

    Attributes:
        store: where they lie; url: the same, to be shown.
        labels: int64 [N].
    """

    def __init__(self, named: NamedDataset, size: int, field: str, firsts: bool = False) -> None:
        """Find every image.

        Args:
            named: the dataset.
            size: height and width its images must have.
            field: the recipe field that names it, for errors.
            firsts: only the first image of each identity.

        Raises:
            InputError: there is no dataset, or it holds something else than the recipe says.
        """
        packaged = named.url.startswith("package:")
        store = Store(local_path(named.url) if packaged else named.url)
        held = contents(store)
        found = contents_digest(store)
        if found != named.digest:
            raise InputError(f"{field}.digest: {named.digest}, but {store.url} has {found}")
        self.size, self.url, self.store = size, store.url, store
        self._index = index(store, held)
        self._copies, self._reader = Copies(store, held), Reader()
        every = np.arange(len(self._index))
        self._rows = every[ranks(self._index.labels) == 0] if firsts else every
        self.labels = self._index.labels[self._rows]

    def __len__(self) -> int:
        """Return N."""
        return len(self._rows)

    def key(self, row: int) -> str:
        """Return the key of an image."""
        return bytes(self._index.keys[self._rows[row]]).decode()

    def image(self, row: int) -> np.ndarray:
        """Return an image, uint8 [S, S, 3] RGB.

        Raises:
            InputError: it cannot be read or has another size.
        """
        try:
            image = decode(self.encoded(row))
        except ValueError as error:
            raise InputError(f"{self.url}: image {self.key(row)}: {error}") from error
        if image.shape[:2] != (self.size, self.size):
            raise InputError(
                f"{self.url}: image {self.key(row)} is {image.shape[1]}x{image.shape[0]} pixels; "
                f"image.size accepts {self.size}x{self.size}"
            )
        return image

    def images(self, rows: Sequence[int]) -> np.ndarray:
        """Return images, uint8 [n, S, S, 3]."""
        return np.stack([self.image(row) for row in rows])

    def encoded(self, row: int) -> bytes:
        """Return an image's file as it lies in its shard."""
        place = self._rows[row]
        return self._read(place, int(self._index.offset[place]), int(self._index.size[place]))

    def sidecar(self, row: int) -> dict:
        """Return what the dataset says of an image; empty where it says nothing."""
        place = self._rows[row]
        size = int(self._index.sidecar_size[place])
        if not size:
            return {}
        return json.loads(self._read(place, int(self._index.sidecar_offset[place]), size))

    def _read(self, place: int, offset: int, size: int) -> bytes:
        shard = self._index.shards[self._index.shard[place]]
        (path,) = self._copies.fetch([shard])
        return self._reader.read(path, offset, size)
