"""Reordering images without holding them in memory.

Images are distributed over files on local disk by their new place; then each file is sorted and
read back. Memory holds one file, for any size of dataset; the files are as large as the images.
"""

import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from factory.seeding import seed64

RANGE = 1 << 64
HEAD = struct.Struct("<QIIII")  # place, label, number, bytes of the image, bytes of the sidecar
BUCKET_BYTES = 128 << 20

Order = Callable[[int, int], int]


class Spooled(NamedTuple):
    """One image with its label, and its number among the images of that label."""

    label: int
    number: int
    encoded: bytes
    sidecar: bytes


def shuffled(seed: int) -> Order:
    """Return a random order; the place of an image depends on the seed, its label and number."""
    return lambda label, number: seed64(seed, "export", label, number)


def grouped(labels: int) -> Order:
    """Return the order by labels; images of one label keep the source's order.

    Args:
        labels: labels are usually below this; higher labels are in order, too.
    """
    return lambda label, _: min(label * RANGE // labels, RANGE - 1)


class Spool:
    """Images in scratch files, to be read in another order."""

    def __init__(
        self, folder: Path, order: Order, total_bytes: int, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        """Prepare scratch files.

        Args:
            folder: an empty local folder.
            order: the place in [0, 2**64) of (label, number); of equal places, lower labels and
                numbers come first.
            total_bytes: approximate number of bytes of all images.
            bucket_bytes: approximate number of bytes of memory to use.
        """
        self.folder, self.order = folder, order
        self.bucket_bytes = bucket_bytes
        self.counts = array("I")  # images by label
        self._files = max(1, -(-total_bytes // bucket_bytes))
        self._waiting: dict[int, list[bytes]] = {}
        self._waiting_bytes = 0

    def add(self, label: int, encoded: bytes, sidecar: bytes) -> int:
        """Add an image, and return its number among those of its label."""
        if label >= len(self.counts):
            self.counts.extend([0] * (label + 1 - len(self.counts)))
        number = self.counts[label]
        self.counts[label] += 1
        place = self.order(label, number)
        head = HEAD.pack(place, label, number, len(encoded), len(sidecar))
        self._waiting.setdefault(place * self._files // RANGE, []).extend((head, encoded, sidecar))
        self._waiting_bytes += len(head) + len(encoded) + len(sidecar)
        if self._waiting_bytes >= self.bucket_bytes:
            self._flush()
        return number

    def read(self) -> Iterator[Spooled]:
        """Yield all images in order, once; each scratch file is deleted when it is read."""
        self._flush()
        for file in range(self._files):
            path = self._path(file)
            if path.exists():
                data = path.read_bytes()
                path.unlink()
                yield from _sorted(data)

    def _flush(self) -> None:
        for file, pieces in self._waiting.items():
            with self._path(file).open("ab") as out:
                out.writelines(pieces)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _path(self, file: int) -> Path:
        return self.folder / f"{file:06d}"


def _sorted(data: bytes) -> Iterator[Spooled]:
    found: list[tuple[int, int, int, int, int, int]] = []
    at = 0
    while at < len(data):
        place, label, number, image, sidecar = HEAD.unpack_from(data, at)
        start = at + HEAD.size
        at = start + image + sidecar
        found.append((place, label, number, start, start + image, at))
    for _, label, number, start, middle, stop in sorted(found):
        yield Spooled(label, number, data[start:middle], data[middle:stop])
