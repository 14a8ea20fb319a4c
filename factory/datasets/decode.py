"""The one place where encoded images become pixels: looked at first, then decoded.

The header states a size before a pixel is decoded; what claims more than an image can have, or
more than its bytes can hold, is refused there. Pixels are uint8 RGB whatever mode and depth the
file has: sixteen bits are scaled, not cut; transparency is dropped, as most readers drop it.
"""

import io
import struct
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
NAMES = {"MPO": "JPEG", "PPM": "PGM or PPM", "WEBP": "WebP"}
PLAIN = ("Gray", "YCbCr", "RGB")  # colours of a JPEG that all readers decode alike
MOST_PIXELS = 1 << 27  # of one image
LARGE = 1 << 22  # pixels from which on a file's bytes are compared with them
PIXELS_PER_BYTE = 1024  # of a JPEG: a block of 64 pixels takes a bit and more
ORIENTATION = 0x0112  # EXIF's tag
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
STEP = 257  # from a value of 8 bits to one of 16


class DecodeError(ValueError):
    """Bytes that are no image, or one that is damaged or larger than any that is accepted."""


class Header(NamedTuple):
    """What an image says of itself before it is decoded.

    Attributes:
        kind: JPEG, PNG, ...
        height, width: in pixels, as stored.
        plain: whether every reader decodes its bytes alike: a JPEG of one or three colours, a PNG
            of three channels of 8 bits.
        orientation: EXIF's, 1 to 8; 1 is upright.
    """

    kind: str
    height: int
    width: int
    plain: bool
    orientation: int


def image_size(data: bytes) -> tuple[int, int]:
    """Return height and width in pixels, having decoded nothing; DecodeError where that fails."""
    if data.startswith(PNG_MAGIC) and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">2I", data[16:24])
        return _checked(data, "PNG", height, width)
    if data.startswith(JPEG_MAGIC):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            return _checked(data, "JPEG", int(height), int(width))
        except ValueError as error:  # damaged, or a subsampling it does not know
            if isinstance(error, DecodeError):
                raise
    with _opened(data) as image:
        width, height = image.size
    return height, width


def read_header(data: bytes) -> Header:
    """Return what an image says of itself, having decoded nothing.

    Raises:
        DecodeError: it is no image, or a larger one than is accepted.
    """
    height, width = image_size(data)
    with _opened(data) as image:
        kind = "JPEG" if image.format == "MPO" else image.format or ""
        plain = kind == "PNG" and data[24:26] == b"\x08\x02" and "transparency" not in image.info
        if kind == "JPEG":
            plain = image.mode in ("L", "RGB")
        return Header(kind, height, width, plain, _orientation(image))


def decode(data: bytes) -> np.ndarray:
    """Return an image as it is stored, uint8 [H, W, 3] RGB.

    Raises:
        DecodeError: it is no image, is damaged, or is a larger one than is accepted.
    """
    if data.startswith(JPEG_MAGIC):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:  # damaged, or a subsampling it does not know: Pillow tells which
            colours = ""
        else:
            _checked(data, "JPEG", int(height), int(width))
        if colours in PLAIN:
            try:
                return simplejpeg.decode_jpeg(data, colorspace="RGB")
            except ValueError:
                raise DecodeError("a damaged JPEG") from None
    elif data.startswith(PNG_MAGIC):
        image_size(data)
    with _opened(data) as image:
        try:
            return _rgb(image)
        except DecodeError:
            raise
        except Exception as error:  # what a damaged image raises in Pillow may be anything
            kind = NAMES.get(image.format or "", image.format)
            raise DecodeError(f"a damaged {kind} ({_line(error)})") from None


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image, [H, W, C], as viewers show it by EXIF's orientation."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)  # 5 is this alone
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _checked(data: bytes, kind: str, height: int, width: int) -> tuple[int, int]:
    """Return height and width; DecodeError where no image of these bytes has them."""
    if not 0 < height * width <= MOST_PIXELS:
        raise DecodeError(
            f"a {kind} that claims {width:,} x {height:,} pixels; accepted are {MOST_PIXELS:,}"
        )
    large = kind == "JPEG" and height * width > LARGE
    if large and height * width > PIXELS_PER_BYTE * len(data):
        raise DecodeError(
            f"a {kind} of {len(data):,} bytes that claims {width:,} x {height:,} pixels"
        )
    return height, width


def _opened(data: bytes) -> Any:
    """Return Pillow's image, nothing of it decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise DecodeError(_no_image(data)) from None
    except Image.DecompressionBombError:
        raise DecodeError(f"claims too many pixels; accepted are {MOST_PIXELS:,}") from None
    except Exception as error:  # what a damaged image raises in Pillow may be anything
        raise DecodeError(f"{_no_image(data, 'a damaged image')} ({_line(error)})") from None
    try:
        _checked(data, NAMES.get(image.format or "", image.format or ""), *image.size[::-1])
    except DecodeError:
        image.close()
        raise
    return image


def _no_image(data: bytes, other: str = "not an image") -> str:
    if not data:
        return "empty, not an image"
    for magic, kind in ((JPEG_MAGIC, "JPEG"), (PNG_MAGIC, "PNG")):
        if data.startswith(magic):
            return f"a damaged {kind}"
    return other


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged tag turns nothing; what it raises in Pillow may be anything
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of any mode as uint8 [H, W, 3]."""
    if image.mode in SIXTEEN_BITS:
        return _grey(np.asarray(image) / STEP)
    if image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        return _grey(_bytes(values, image.mode == "F", image.format == "PPM"))
    if image.mode in ("P", "PA") or image.mode.endswith("a"):
        image = image.convert({"La": "LA"}.get(image.mode, "RGBA"))
    return np.asarray(image.convert("RGB"))


def _bytes(values: np.ndarray, floats: bool, sixteen: bool) -> np.ndarray:
    """Scale greys that are stored as 32-bit numbers to 0 to 255, by the range they keep to.

    Floats are 0 to 1 by convention; larger ones, and integers, are values of 8 bits or of 16.
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high < (1 << 16)):  # also what is not a number
        raise DecodeError(
            f"greys of 32 bits from {low:g} to {high:g}; accepted are 0 to 1, 255 or 65535"
        )
    if sixteen or high > 255:
        return values / STEP
    return values * 255 if floats and high <= 1 else values


def _grey(values: np.ndarray) -> np.ndarray:
    grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
