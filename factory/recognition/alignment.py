"""Alignment of a face by its five points to the template that ArcFace networks expect."""

import cv2
import numpy as np

from factory.studio.render import TEMPLATE_112, similarity


def aligned(image: np.ndarray, points: np.ndarray, size: int = 112) -> np.ndarray:
    """Return the face upright and centred, uint8 [size, size, 3]; outside the image it is black.

    Args:
        image: uint8 [H, W, 3], sampled bilinearly.
        points: float [5, 2]: eye, eye, nose tip, mouth corner, mouth corner, from the image's left
            to its right, x and y in pixels.
        size: edge of the result; the template is that of 112 pixels, scaled.
    """
    move = similarity(np.asarray(points, np.float64), TEMPLATE_112 * (size / 112.0))
    return cv2.warpAffine(image, move, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)
