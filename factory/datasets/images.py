"""The images of a dataset, read at random.

A recipe names a dataset by its address and by the digest of its content. Only that digest enters
the content digest of a dataset that is made from it.
"""

import json
from collections.abc import Sequence

import numpy as np

from factory.datasets.decode import decode
from factory.datasets.index import Copies, Reader, contents, index, ranks
from factory.datasets.store import Store
from factory.recipe import InputError, NamedDataset, digest, local_path


def contents_digest(store: Store) -> str:
    """Return the digest of a dataset's content, 16 hex digits: its shards and their sha256."""
    return digest(dict(sorted(contents(store).items())))


class ImageBank:
    """The images of a dataset, in the order of their keys; a shard is copied or opened when needed.

    Attributes:
        size: height and width of the images in pixels.
        store: the dataset's store.
        url: its address without credentials.
        labels: int64 [N].
    """

    def __init__(self, named: NamedDataset, size: int, field: str, firsts: bool = False) -> None:
        """Open the dataset and find its images.

        Args:
            named: the dataset.
            size: height and width that its images must have.
            field: the recipe field that names it, for errors.
            firsts: use only the first image of each identity.

        Raises:
            InputError: there is no dataset, or its digest is not the one in the recipe.
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
                f"accepted are {self.size}x{self.size}"
            )
        return image

    def images(self, rows: Sequence[int]) -> np.ndarray:
        """Return images, uint8 [n, S, S, 3]."""
        return np.stack([self.image(row) for row in rows])

    def encoded(self, row: int) -> bytes:
        """Return the bytes of an image's file from its shard."""
        place = self._rows[row]
        return self._read(place, int(self._index.offset[place]), int(self._index.size[place]))

    def sidecar(self, row: int) -> dict:
        """Return an image's sidecar; empty if it has none."""
        place = self._rows[row]
        size = int(self._index.sidecar_size[place])
        if not size:
            return {}
        return json.loads(self._read(place, int(self._index.sidecar_offset[place]), size))

    def _read(self, place: int, offset: int, size: int) -> bytes:
        shard = self._index.shards[self._index.shard[place]]
        (path,) = self._copies.fetch([shard])
        return self._reader.read(path, offset, size)
