"""Banks: images that identities or styles are drawn from, read at random from a dataset.

A recipe names a dataset by where it lies and by the digest of what it holds; only the digest enters
the content digest of what is made from it.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from factory.recipe import InputError, NamedDataset, digest, local_path
from factory.shards.feed import decode
from factory.shards.index import Copies, Reader, contents, index, ranks
from factory.shards.store import Store
from factory.studio.people import person
from factory.studio.render import render
from factory.studio.views import attributes, draw_view


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
        except (ValueError, OSError) as error:
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


class Style(NamedTuple):
    """A picture that says how: its number in the bank and, in the studio, the seed of its view."""

    number: int
    view: int


class StyleBank(Protocol):
    """Where styles are drawn from."""

    def draw(self, draws: np.random.Generator) -> Style:
        """Draw a style."""
        ...

    def image(self, style: Style) -> np.ndarray:
        """Return its picture, uint8 [S, S, 3] RGB."""
        ...

    def truth(self, style: Style) -> dict[str, Any]:
        """Return what is known of the picture."""
        ...

    def key(self, style: Style) -> str:
        """Return its name, for sidecars."""
        ...


class DatasetStyles:
    """Styles that are the images of a dataset."""

    def __init__(self, images: ImageBank) -> None:
        """Keep the images."""
        self.images = images

    def draw(self, draws: np.random.Generator) -> Style:
        """Draw one of all images."""
        return Style(int(draws.integers(len(self.images))), 0)

    def image(self, style: Style) -> np.ndarray:
        """Return the image."""
        return self.images.image(style.number)

    def truth(self, style: Style) -> dict[str, Any]:
        """Return the truth its sidecar states."""
        return self.images.sidecar(style.number).get("truth", {})

    def key(self, style: Style) -> str:
        """Return the key of the image."""
        return self.images.key(style.number)


class StudioStyles:
    """Styles that are pictures of the studio's train people, rendered when they are needed."""

    def __init__(self, people: int, size: int) -> None:
        """Keep how many people there are, and the height and width of a picture."""
        self.people, self.size = people, size

    def draw(self, draws: np.random.Generator) -> Style:
        """Draw a person and a view."""
        return Style(int(draws.integers(self.people)), int(draws.integers(2**63)))

    def image(self, style: Style) -> np.ndarray:
        """Render the view of the person."""
        return render(person("train", style.number), draw_view(style.view), self.size)

    def truth(self, style: Style) -> dict[str, Any]:
        """Return what the studio knows of the view."""
        return dict(attributes(person("train", style.number), draw_view(style.view)))

    def key(self, style: Style) -> str:
        """Return set, number and view."""
        return f"studio-train-{style.number}-{style.view:016x}"
