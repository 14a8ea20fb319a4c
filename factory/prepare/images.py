"""Preparing one existing image: it is decoded, resized or aligned, and encoded, or rejected."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factory.datasets.decode import DecodeError, Header, decode, image_size, read_header, upright
from factory.datasets.encode import encode_image
from factory.datasets.feed import resized
from factory.prepare.detector import Detector
from factory.prepare.recipe import PrepareRecipe
from factory.recognition.alignment import aligned

UNREADABLE, WRONG_SIZE, NO_FACE = "unreadable", "wrong_size", "no_face"
EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}


@dataclass(frozen=True)
class Made:
    """The result for one image: its bytes with facts for the sidecar, or the reason to reject it.

    Attributes:
        data: the encoded image.
        facts: what was done to it.
        reason: why it is left out; empty where it is not.
        score: the edge in pixels of an image of the wrong size.
        extension: jpg or png; empty is the dataset's.
    """

    data: bytes = b""
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    score: float | None = None
    extension: str = ""


def make_image(data: bytes, recipe: PrepareRecipe, detector: Detector | None) -> Made:
    """Return the result for an encoded image.

    Without alignment an upright image that has the right size and format keeps its bytes; what is
    encoded again says so in its facts. Where the recipe keeps, an image of another encoding than
    JPEG becomes PNG in a dataset of JPEG, so that no pixel is lost.
    """
    try:
        header = read_header(data)
        image = upright(decode(data), header.orientation)
    except DecodeError:
        return Made(reason=UNREADABLE)
    size = recipe.image.size
    if detector is not None:
        return _cropped(image, recipe, detector)
    turned = {} if header.orientation == 1 else {"turned": True}
    if image.shape[:2] == (size, size):
        return _whole(data, image, header, recipe, turned)
    if not recipe.resize or image.shape[0] != image.shape[1]:
        return Made(reason=WRONG_SIZE, score=float(max(image.shape[:2])))
    facts = {"resized_from": image.shape[0], **turned}
    return Made(encode_image(resized(image, size), recipe.image), facts)


def _cropped(image: np.ndarray, recipe: PrepareRecipe, detector: Detector) -> Made:
    face = detector.find(image)
    if face is None:
        return Made(reason=NO_FACE)
    facts = {
        "box": [round(side, 2) for side in face.box],
        "score": round(face.score, 4),
        "points": [[round(float(at), 2) for at in point] for point in face.points],
        "faces": face.faces,
    }
    crop = aligned(image, face.points, recipe.image.size)
    return Made(encode_image(crop, recipe.image), {"face": facts})


def _whole(
    data: bytes, image: np.ndarray, header: Header, recipe: PrepareRecipe, turned: dict[str, Any]
) -> Made:
    """Return an image of the dataset's size: its own bytes, or its pixels encoded again."""
    wanted = recipe.image.format
    lossless = recipe.keep and wanted == "jpg" and header.kind != "JPEG"
    form = "png" if lossless else wanted
    extension = form if lossless else ""
    if header.plain and not turned and EXTENSIONS.get(header.kind) == form:
        return Made(data, extension=extension)
    encoded = encode_image(image, recipe.image.model_copy(update={"format": form}))
    return Made(encoded, {"reencoded": True, **turned}, extension=extension)


def dimensions(data: bytes) -> tuple[int, int] | None:
    """Return width and height of an encoded image in pixels; None if it cannot be read."""
    try:
        height, width = image_size(data)
    except DecodeError:
        return None
    return width, height
