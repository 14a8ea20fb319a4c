"""Faces on the page: at their own size or twice it, pixel for pixel."""

import base64

import numpy as np
import pytest
import simplejpeg
from faces import face, make_dataset

from factory.datasets.store import Store
from factory.report.contact import A_ROW, HALF, LARGEST, ROOM, contact_sheet


def sheet(folder, size, room=ROOM, each=3):
    return contact_sheet(Store(make_dataset(folder, 3, each, size)), 2, A_ROW, room)


def pixels(picture):
    data = base64.b64decode(picture.uri.removeprefix("data:image/jpeg;base64,"))
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


@pytest.mark.parametrize(
    ("size", "room", "scale", "shown"),
    [
        *((16, ROOM, 2, 16), (64, ROOM, 2, 64), (65, ROOM, 1, 65), (112, ROOM, 1, 112)),
        *((128, ROOM, 1, 128), (129, ROOM, 1, 65), (256, ROOM, 1, 128), (512, ROOM, 1, 128)),
        *((32, HALF, 2, 32), (64, HALF, 1, 64)),
    ],
)
def test_faces_are_shown_once_or_twice_their_size(tmp_path, size, room, scale, shown):
    found = sheet(tmp_path, size, room)
    assert [strip.label for strip in found.strips] == [0, 1]
    assert (found.face, found.pixels) == (shown, f"{size} x {size} pixels")
    assert bool(found.shrunk) == (size > LARGEST)
    if size == 512:
        assert found.shrunk == "at 1/4 of their size"
    if not found.shrunk:
        assert found.scale == scale
    assert A_ROW * found.face * found.scale <= ROOM


@pytest.mark.parametrize("each", [1, 6, 8, 11])
def test_eight_a_row_whatever_the_number_of_images(tmp_path, each):
    found = sheet(tmp_path, 64, each=each)
    assert {len(strip.faces) for strip in found.strips} == {min(each, A_ROW)}
    assert found.scale == 2 and found.face == 64  # a face is as large as with other numbers


def test_a_face_is_what_the_dataset_has_without_seams(tmp_path):
    found = sheet(tmp_path, 64)
    for slot, picture in enumerate(found.strips[1].faces):
        own = face(1, slot, 64).astype(int)
        assert pixels(picture).shape == own.shape  # nothing was put around it
        assert np.abs(pixels(picture) - own).mean() < 4  # noise, encoded twice at 95


def test_a_large_face_is_the_mean_of_its_pixels(tmp_path):
    picture = sheet(tmp_path, 256).strips[0].faces[0]
    own = face(0, 0, 256).astype(float).reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert picture.own == (256, 256)
    assert np.abs(pixels(picture) - own).mean() < 3
