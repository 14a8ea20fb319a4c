"""Preparing images for a recognizer: decoding, checking sizes, embedding in batches."""

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from factory.datasets.decode import DecodeError
from factory.datasets.decode import decode as decoded
from factory.datasets.embeddings import Embedder
from factory.datasets.feed import resized
from factory.recipe import InputError

BATCH = 256  # images of one call, where evaluations embed


class NamedEmbedder(Embedder, Protocol):
    """A recognizer with a name, as evaluations need it."""

    @property
    def name(self) -> str:
        """Return the name to print."""
        ...


def decode(data: bytes, what: str) -> np.ndarray:
    """Decode an image to uint8 [H, W, 3] RGB.

    Args:
        data: the encoded image.
        what: words that name the image in an error.

    Raises:
        InputError: the bytes are no image, are damaged, or claim more pixels than are accepted.
    """
    try:
        return decoded(data)
    except DecodeError as error:
        raise InputError(f"{what}: cannot be read ({error}); accepted is JPEG or PNG") from None


def fitted(image: np.ndarray, size: int, what: str, resize: bool) -> np.ndarray:
    """Return the image as uint8 [size, size, 3], resized bilinearly if `resize` allows it.

    Raises:
        InputError: the image has another size and `resize` is off.
    """
    if image.shape[:2] == (size, size):
        return image
    if not resize:
        raise InputError(
            f"{what}: {image.shape[1]} x {image.shape[0]} pixels, the recognizer takes {size} x "
            f"{size}; accepted are images of its size, or --resize to resize them bilinearly"
        )
    return resized(image, size)


def batches(images: Iterator[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    """Stack uint8 [S, S, 3] images into batches uint8 [B, S, S, 3], B up to `batch_size`."""
    while batch := list(itertools.islice(images, batch_size)):
        yield np.stack(batch)


def flip_sum(recognizer: NamedEmbedder, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embed images and their mirror images, without normalisation.

    Returns:
        The sums of both embeddings, float64 [B, D], and the lengths of all, float64 [2B].
    """
    pair = [recognizer.embed(part).astype(np.float64) for part in (images, mirrored(images))]
    return pair[0] + pair[1], np.concatenate([lengths(part) for part in pair])


def mirrored(images: np.ndarray) -> np.ndarray:
    """Return the mirror images of uint8 [B, S, S, 3]."""
    return np.ascontiguousarray(images[:, :, ::-1])


def lengths(embeddings: np.ndarray) -> np.ndarray:
    """Return the L2 length of each row, float64 [N]."""
    return np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings))


def normalized(embeddings: np.ndarray) -> np.ndarray:
    """Return rows of unit length, to scikit-learn's last digits; a row of zeros stays zero."""
    found = lengths(embeddings)[:, None]
    return embeddings / np.where(found == 0.0, 1.0, found)
