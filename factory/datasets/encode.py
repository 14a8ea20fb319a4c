"""Encoding an image of a dataset as JPEG or PNG."""

import io

import numpy as np
import simplejpeg
from PIL import Image as PILImage

from factory.recipe import Image


def encode_image(image: np.ndarray, how: Image) -> bytes:
    """Encode uint8 [S, S, 3] RGB as JPEG without chroma subsampling, or as PNG."""
    if how.format == "jpg":
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), how.quality, colorspace="RGB", colorsubsampling="444"
        )
    sink = io.BytesIO()
    PILImage.fromarray(image).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
