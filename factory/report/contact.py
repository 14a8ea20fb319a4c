"""Contact sheets: the faces of an identity in a row, read from the shards of a dataset."""

import base64
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from factory.datasets.store import Store
from factory.evaluation.dataset import StoredSample, samples
from factory.recognition.images import decode

LARGEST = 128  # pixels; larger faces are made smaller by a whole factor
QUALITY = 95
A_ROW = 8  # faces
GAP = 2  # pixels of the page between faces
ROOM = A_ROW * (LARGEST + GAP)  # pixels of the page that a row may take
HALF = A_ROW * (LARGEST // 2 + GAP)  # the same where two sheets stand side by side


@dataclass(frozen=True)
class Picture:
    """A face on the page.

    Attributes:
        key: of its sample.
        uri: a JPEG data URI.
        width: of that JPEG, in pixels.
        height: likewise.
        own: width and height of the sample.
    """

    key: str
    uri: str
    width: int
    height: int
    own: tuple[int, int]


@dataclass(frozen=True)
class Strip:
    """The faces of one identity side by side.

    Attributes:
        label: the identity.
        cosine: mean cosine of the teacher's embeddings to the context, None where not measured.
        faces: from left to right.
    """

    label: int
    cosine: float | None
    faces: tuple[Picture, ...]


@dataclass(frozen=True)
class Sheet:
    """The strips of a dataset, and the room there is for one.

    Faces are shown at their own size or at exactly twice it, where every pixel becomes a square.
    """

    strips: tuple[Strip, ...]
    room: int = ROOM

    @property
    def face(self) -> int:
        """The width of the widest face, in pixels, 0 where there is none."""
        return max((face.width for face in self._faces), default=0)

    @property
    def scale(self) -> int:
        """2 where `A_ROW` faces of twice their size have room in a row, else 1."""
        return 2 if A_ROW * (2 * self.face + GAP) <= self.room else 1

    @property
    def pixels(self) -> str:
        """The size of the images in words."""
        sizes = sorted({face.own for face in self._faces})
        words = [f"{width} x {height}" for width, height in (sizes[:1] + sizes[1:][-1:])]
        return f"{' to '.join(words)} pixels" if words else ""

    @property
    def shrunk(self) -> str:
        """By how much faces were made smaller, in words; "" where none was."""
        factors = sorted({-(-max(face.own) // LARGEST) for face in self._faces})
        if not factors or factors[-1] == 1:
            return ""
        return f"at 1/{factors[0]} of their size" if len(factors) == 1 else "some made smaller"

    @property
    def _faces(self) -> list[Picture]:
        return [face for strip in self.strips for face in strip.faces]


def contact_sheet(store: Store, identities: int, images_each: int, room: int = ROOM) -> Sheet:
    """Return the first identities of a dataset, unselected.

    Args:
        store: the dataset.
        identities: how many identities, the lowest labels.
        images_each: how many images of each, the lowest slots.
        room: pixels of the page that a row may take.
    """
    found: dict[int, list[StoredSample]] = {}
    for sample in samples(store, identities, images_each):
        found.setdefault(sample.label, []).append(sample)
    return Sheet(tuple(_strip(label, found[label]) for label in sorted(found)), room)


def _strip(label: int, group: list[StoredSample]) -> Strip:
    cosines = [s.sidecar["cosine"] for s in group if s.sidecar.get("cosine") is not None]
    return Strip(
        label=label,
        cosine=float(np.mean(cosines)) if cosines else None,
        faces=tuple(_picture(sample) for sample in group),
    )


def _picture(sample: StoredSample) -> Picture:
    """Return a face as the trainers see it: decoded, so that no metadata turns or colours it."""
    pixels = decode(sample.encoded, sample.key)
    own = pixels.shape[1], pixels.shape[0]
    factor = -(-max(pixels.shape[:2]) // LARGEST)
    if factor > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(factor))  # the mean of its pixels
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), QUALITY, colorspace="RGB", colorsubsampling="444"
    )
    return Picture(
        key=sample.key,
        uri="data:image/jpeg;base64," + base64.b64encode(data).decode(),
        width=pixels.shape[1],
        height=pixels.shape[0],
        own=own,
    )
