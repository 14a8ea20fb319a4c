"""Contact sheets: one strip of faces for each identity, read from the shards of a dataset."""

import base64
from dataclasses import dataclass, field

import numpy as np
import simplejpeg

from factory.datasets.store import Store
from factory.evaluation.dataset import StoredSample, samples
from factory.recognition.images import decode, fitted

LARGEST = 112  # largest side of a face in pixels
GAP = 2  # pixels between faces


@dataclass
class Strip:
    """The faces of one identity side by side.

    Attributes:
        label: the identity.
        uri: the strip as a JPEG data URI.
        width: its width in pixels.
        height: its height in pixels.
        cosine: mean cosine of the teacher's embeddings to the context; None if not measured.
        keys: keys of the samples, from left to right.
    """

    label: int
    uri: str
    width: int
    height: int
    cosine: float | None
    keys: list[str] = field(default_factory=list)


def contact_sheet(store: Store, identities: int, images_each: int) -> list[Strip]:
    """Return strips of the first identities of a dataset, without any selection.

    Args:
        store: the dataset.
        identities: number of identities, those with the lowest labels.
        images_each: number of images of each, those in the lowest slots.
    """
    found: dict[int, list[StoredSample]] = {}
    for sample in samples(store, identities, images_each):
        found.setdefault(sample.label, []).append(sample)
    return [_strip(label, found[label]) for label in sorted(found)]


def _strip(label: int, group: list[StoredSample]) -> Strip:
    faces = [decode(sample.encoded, sample.key) for sample in group]
    size = min(faces[0].shape[0], LARGEST)
    faces = [fitted(face, size, "", resize=True) for face in faces]
    width = len(faces) * size + (len(faces) - 1) * GAP
    canvas = np.full((size, width, 3), 128, dtype=np.uint8)
    for number, face in enumerate(faces):
        canvas[:, number * (size + GAP) : number * (size + GAP) + size] = face
    data = simplejpeg.encode_jpeg(canvas, 92, colorspace="RGB", colorsubsampling="444")
    cosines = [s.sidecar["cosine"] for s in group if s.sidecar.get("cosine") is not None]
    return Strip(
        label=label,
        uri="data:image/jpeg;base64," + base64.b64encode(data).decode(),
        width=width,
        height=size,
        cosine=float(np.mean(cosines)) if cosines else None,
        keys=[sample.key for sample in group],
    )
