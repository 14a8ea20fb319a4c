"""One place decodes: every mode and depth to 8 bits, headers before pixels, plain words."""

import io
import time
import warnings

import made
import numpy as np
import pytest
from PIL import Image

from factory.datasets import decode as module
from factory.datasets.decode import DecodeError, decode, image_size, read_header, upright

PICTURE = made.picture(3)
GREY = PICTURE[..., 1]
RGB = np.repeat(GREY[..., None], 3, axis=2)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    return made.encoded(image, form, **options)


SIXTEEN = GREY.astype(np.uint16) * 257
KINDS = {
    "L png": (saved(Image.fromarray(GREY), "PNG"), RGB),
    "LA png": (saved(Image.fromarray(GREY).convert("LA"), "PNG"), RGB),
    "RGBA png": (saved(Image.fromarray(PICTURE).convert("RGBA"), "PNG"), PICTURE),
    "I;16 png": (saved(Image.fromarray(SIXTEEN), "PNG"), RGB),
    "I;16 tiff": (saved(Image.fromarray(SIXTEEN), "TIFF"), RGB),
    "I;16B tiff": (saved(Image.fromarray(SIXTEEN.astype(">u2")), "TIFF"), RGB),
    "I tiff of 16 bits": (saved(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), RGB),
    "I tiff of 8 bits": (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), RGB),
    "PGM of 16 bits": (saved(Image.fromarray(SIXTEEN.astype(np.int32), "I"), "PPM"), RGB),
    "PGM": (saved(Image.fromarray(GREY), "PPM"), RGB),
    "F tiff of 0 to 1": (saved(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"), RGB),
    "F tiff of 0 to 255": (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), RGB),
    "P png": (
        saved(Image.fromarray(GREY).quantize(256), "PNG"),
        np.asarray(Image.fromarray(GREY).quantize(256).convert("RGB")),
    ),
    "1 png": (
        saved(Image.fromarray(GREY > 128), "PNG"),
        np.repeat(((GREY > 128) * 255)[..., None], 3, axis=2),
    ),
    "bmp": (saved(Image.fromarray(PICTURE), "BMP"), PICTURE),
    "webp": (saved(Image.fromarray(PICTURE), "WEBP", lossless=True), PICTURE),
    "gif": (
        saved(Image.fromarray(GREY), "GIF"),
        RGB,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_and_depth_is_scaled_to_rounding(kind: str) -> None:
    data, wanted = KINDS[kind]
    found = decode(data)
    assert found.dtype == np.uint8 and found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
    assert image_size(data) == wanted.shape[:2]


def test_a_jpeg_of_four_colours_and_one_of_rare_subsampling() -> None:
    inks = saved(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(inks).astype(int) - PICTURE).mean() < 4
    assert not read_header(inks).plain
    for subsampling in (0, 1, 2):
        data = saved(Image.fromarray(PICTURE), "JPEG", quality=95, subsampling=subsampling)
        assert np.abs(decode(data).astype(int) - PICTURE).mean() < 4 and read_header(data).plain


def test_what_reads_alike_everywhere_is_plain() -> None:
    assert read_header(made.png(1)).plain and read_header(made.jpg(1)).plain
    for kind in ("I;16 png", "RGBA png", "L png", "P png", "1 png", "bmp"):
        assert not read_header(KINDS[kind][0]).plain, kind
    sixteen = io.BytesIO()
    Image.fromarray(PICTURE).save(sixteen, "PNG")
    data = bytearray(sixteen.getvalue())
    assert data[24] == 8
    data[24] = 16
    assert not read_header(bytes(data)).plain if _opens(bytes(data)) else True


def _opens(data: bytes) -> bool:
    try:
        read_header(data)
    except DecodeError:
        return False
    return True


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_pillow_turns_it(orientation: int) -> None:
    from PIL import ImageOps

    tag = Image.Exif()
    tag[0x112] = orientation
    data = saved(Image.fromarray(PICTURE[:40]), "PNG", exif=tag)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    header = read_header(data)
    assert header.orientation == orientation
    assert np.array_equal(upright(decode(data), header.orientation), wanted)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty, not an image"),
        (b"hello", "not an image"),
        (b"\xff\xd8\xff" + b"x" * 50, "a damaged JPEG"),
        (made.jpg(1)[:500], "a damaged JPEG"),
        (made.png(1)[:500], "a damaged PNG"),
        (made.claiming(16_000, 16_000), "claims 16,000 x 16,000 pixels"),
        (made.claiming(3_000, 3_000), "bytes that claims 3,000 x 3,000 pixels"),
        (made.claiming(0, 5), "JPEG"),
    ],
)
def test_refused_in_milliseconds_and_plain_words(data: bytes, words: str) -> None:
    began = time.perf_counter()
    with pytest.raises(DecodeError, match=words) as error:
        decode(data)
    assert time.perf_counter() - began < 0.2
    assert "subsampling" not in str(error.value) and "\n" not in str(error.value)


def test_a_png_that_claims_much_warns_nobody() -> None:
    data = bytearray(made.png(1))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DecodeError, match="claims 20,000 x 20,000"):
            decode(bytes(data))


def test_greys_without_a_range_are_refused() -> None:
    for values in (np.full((8, 8), np.nan), np.full((8, 8), -1.0), np.full((8, 8), 1e9)):
        data = saved(Image.fromarray(values.astype(np.float32)), "TIFF")
        with pytest.raises(DecodeError, match="greys of 32 bits"):
            decode(data)


def test_nothing_else_decodes() -> None:
    from pathlib import Path

    root = Path(module.__file__).parents[1]
    words = ("decode_jpeg", "Image.open", "imdecode")
    found = {
        path.name for path in root.rglob("*.py") if any(word in path.read_text() for word in words)
    }
    assert found == {"decode.py"}
