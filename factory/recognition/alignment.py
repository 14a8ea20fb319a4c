"""Alignment of a face by five points to ArcFace's template (docs/papers.md 0.1)."""

import cv2
import numpy as np

from factory.studio.render import TEMPLATE_112, similarity


def aligned(image: np.ndarray, points: np.ndarray, size: int = 112) -> np.ndarray:
    """Return the face upright and centred, uint8 [size, size, 3]; black outside the image.

    Args:
        image: uint8 [H, W, 3]; it is sampled bilinearly.
        points: x and y in pixels, float [5, 2]: eye, eye, nose tip, mouth corner, mouth corner,
            each pair from the image's left to its right.
        size: height and width of the result; the template of 112 pixels is scaled to it.
    """
    move = similarity(np.asarray(points, np.float64), TEMPLATE_112 * (size / 112.0))
    return cv2.warpAffine(image, move, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)
