"""Preparing one existing image: it is decoded, resized or aligned, and encoded, or rejected."""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from factory.datasets.encode import encode_image
from factory.datasets.feed import resized
from factory.prepare.detector import Detector
from factory.prepare.recipe import PrepareRecipe
from factory.recognition.alignment import aligned
from factory.recognition.images import PNG_MAGIC

UNREADABLE, WRONG_SIZE, NO_FACE = "unreadable", "wrong_size", "no_face"
PLAIN = ("Gray", "YCbCr", "RGB")
BROKEN = (ValueError, OSError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Made:
    """The result for one image: its bytes with facts for the sidecar, or the reason to reject it.

    `score` is the longer side in pixels of an image of the wrong size.
    """

    data: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    score: float | None = None


def make_image(data: bytes, recipe: PrepareRecipe, detector: Detector | None) -> Made:
    """Return the result for an encoded image.

    Without alignment, an image of the right size and format keeps its bytes. An image of another
    format is encoded again, and the facts state it.
    """
    try:
        image = _decode(data, upright=detector is not None)
    except BROKEN:
        return Made(reason=UNREADABLE)
    size = recipe.image.size
    if detector is not None:
        face = detector.find(image)
        if face is None:
            return Made(reason=NO_FACE)
        facts = {
            "box": [round(side, 2) for side in face.box],
            "score": round(face.score, 4),
            "points": [[round(float(at), 2) for at in point] for point in face.points],
            "faces": face.faces,
        }
        crop = aligned(image, face.points, size)
        return Made(encode_image(crop, recipe.image), {"face": facts})
    if image.shape[:2] == (size, size):
        if _kept(data, recipe.image.format):
            return Made(data)
        return Made(encode_image(image, recipe.image), {"reencoded": True})
    if not recipe.resize or image.shape[0] != image.shape[1]:
        return Made(reason=WRONG_SIZE, score=float(max(image.shape[:2])))
    return Made(encode_image(resized(image, size), recipe.image), {"resized_from": image.shape[0]})


def dimensions(data: bytes) -> tuple[int, int] | None:
    """Return width and height of an encoded image in pixels; None if it cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except BROKEN:
        return None


def _decode(data: bytes, upright: bool) -> np.ndarray:
    """Return uint8 [H, W, 3] RGB, decoded as a dataset's readers do if that is possible."""
    if _plain_jpeg(data) and not upright:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    with Image.open(io.BytesIO(data)) as image:
        turned = ImageOps.exif_transpose(image) if upright else image
        return np.asarray(turned.convert("RGB"))


def _kept(data: bytes, wanted: str) -> bool:
    """Tell whether the bytes can be kept: they have the format, and all readers read them alike."""
    if wanted == "png":
        if not data.startswith(PNG_MAGIC):
            return False
        with Image.open(io.BytesIO(data)) as image:
            return image.mode == "RGB"
    return _plain_jpeg(data)


def _plain_jpeg(data: bytes) -> bool:
    """Tell whether it is a JPEG with one or three channels; Pillow converts those with four."""
    return simplejpeg.is_jpeg(data) and simplejpeg.decode_jpeg_header(data)[2] in PLAIN
