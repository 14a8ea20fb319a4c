"""One image of others at a time: kept byte for byte, scaled, aligned, or left out for a reason."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import scrfd
from PIL import Image

from factory.prepare.detector import Detector
from factory.prepare.images import dimensions, make_image
from factory.prepare.recipe import Counts, PrepareRecipe
from factory.recipe import Image as ImageOptions
from factory.recipe import InputError


def recipe(size: int = 32, form: str = "jpg", **changes: object) -> PrepareRecipe:
    fields = {
        "name": "x",
        "licence": "MIT",
        "source": "x",
        "source_kind": "folder",
        "source_digest": "0",
        "image": ImageOptions(size=size, format=form),  # type: ignore[arg-type]
        "identities": Counts(count=1, images_each=1),
        "shard_images": 10,
        "resize": False,
        "align": False,
    }
    return PrepareRecipe(**(fields | changes))  # type: ignore[arg-type]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_of_the_right_size_keeps_its_bytes(mode) -> None:
    data = encoded(picture(32, 32).convert(mode), "JPEG", quality=70)
    made = make_image(data, recipe(), None)
    assert (made.data, made.facts, made.reason) == (data, {}, "")
    again = make_image(data, recipe(form="png"), None)
    assert np.array_equal(pixels(again.data), pixels(data)) and again.facts == {"reencoded": True}


def test_a_png_keeps_its_bytes_and_other_formats_their_pixels() -> None:
    data = encoded(picture(32, 32), "PNG")
    assert make_image(data, recipe(form="png"), None).data == data
    for form in ("BMP", "WEBP"):
        other = encoded(picture(32, 32), form, **({"lossless": True} if form == "WEBP" else {}))
        made = make_image(other, recipe(form="png"), None)
        assert np.array_equal(pixels(made.data), pixels(other))
        assert made.facts == {"reencoded": True}
    see_through = encoded(picture(32, 32).convert("RGBA"), "PNG")
    made = make_image(see_through, recipe(form="png"), None)
    assert np.array_equal(pixels(made.data), pixels(data)) and made.data != see_through


def test_a_jpeg_of_four_colours_is_converted() -> None:
    data = encoded(picture(32, 32).convert("CMYK"), "JPEG", quality=95)
    made = make_image(data, recipe(), None)
    assert made.facts == {"reencoded": True}
    assert np.abs(pixels(made.data).astype(int) - pixels(data)).mean() < 2


def test_size_is_asked_for_and_only_squares_are_scaled() -> None:
    square, oblong = encoded(picture(48, 48), "PNG"), encoded(picture(48, 40), "PNG")
    assert make_image(square, recipe(), None).reason == "wrong_size"
    assert make_image(oblong, recipe(resize=True), None).reason == "wrong_size"
    assert make_image(oblong, recipe(), None).score == 48
    made = make_image(square, recipe(form="png", resize=True), None)
    wanted = Image.open(io.BytesIO(square)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels(made.data), np.asarray(wanted))
    assert made.facts == {"resized_from": 48}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP"])
def test_what_cannot_be_read_is_left_out(form) -> None:
    data = encoded(picture(32, 32), form)
    for damaged in (b"", b"no image", data[: len(data) // 2], data[:30]):
        assert make_image(damaged, recipe(), None).reason == "unreadable"
    assert dimensions(b"no image") is None and dimensions(data) == (32, 32)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector(scrfd.write_detector(tmp_path_factory.mktemp("det") / "det.onnx"))


def photograph(width: int = 800, height: int = 600) -> Image.Image:
    image = picture(width, height, 3)
    image.putpixel((0, 0), (255, 255, 255))
    return image


def test_a_photograph_is_aligned_by_its_five_points(detector: Detector) -> None:
    data = encoded(photograph(), "PNG")
    made = make_image(data, recipe(112, "png", align=True), detector)
    points = scrfd.POINTS * 800 / 640  # the photograph's longer side was scaled to 640
    assert made.facts["face"]["points"] == pytest.approx(points, abs=0.02)
    assert made.facts["face"]["box"] == pytest.approx([s * 800 / 640 for s in scrfd.BOX], abs=0.02)
    assert made.facts["face"]["score"] == pytest.approx(0.9, abs=1e-3)
    assert made.facts["face"]["faces"] == 1

    from insightface.utils.face_align import norm_crop

    with pytest.warns(FutureWarning):
        theirs = norm_crop(pixels(data), points.astype(np.float32), 112)
    assert np.abs(pixels(made.data).astype(int) - theirs).max() <= 2


def test_a_crop_of_another_size_is_the_same_view(detector: Detector) -> None:
    data = encoded(photograph(), "PNG")
    large = pixels(make_image(data, recipe(112, "png", align=True), detector).data)
    small = pixels(make_image(data, recipe(56, "png", align=True), detector).data)
    assert np.abs(cv2.resize(large, (56, 56)).astype(int) - small).mean() < 4


def test_a_turned_photograph_is_set_upright_first(detector: Detector) -> None:
    upright = photograph()
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right of what is stored
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    turned = encoded(stored, "PNG", exif=exif)
    wanted = make_image(encoded(upright, "PNG"), recipe(112, "png", align=True), detector)
    assert make_image(turned, recipe(112, "png", align=True), detector) == wanted


def test_no_face_is_a_reason(detector: Detector) -> None:
    dark = encoded(Image.new("RGB", (100, 80)), "PNG")
    assert make_image(dark, recipe(112, align=True), detector).reason == "no_face"
    assert make_image(b"", recipe(112, align=True), detector).reason == "unreadable"


def test_what_is_no_detector_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; accepted is an SCRFD detector"):
        Detector(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="not an ONNX model"):
        Detector(tmp_path / "bad.onnx")
