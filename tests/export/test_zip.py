"""The EDM zip read back by zipfile, as the trainers' loader does it."""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from patches import Made, colours_kept, digest
from PIL import Image

from factory.export import zip as module
from factory.export.about import About
from factory.export.output import Hashed
from factory.export.zip import StoredZip


def test_labels_and_pixels(run: Callable[..., tuple[Path, About]], dataset: Made) -> None:
    folder, about = run("edm")
    with zipfile.ZipFile(folder / "acme_v1.zip") as archive:
        assert archive.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
        labels = dict(json.loads(archive.read("dataset.json"))["labels"])
    assert {image.shape for image in images} == {(32, 32, 3)}
    found = [(labels[name], image) for name, image in zip(names, images, strict=True)]
    assert Counter((label, digest(image)) for label, image in found) == dataset.pixels
    assert np.array([label for label, _ in found]).dtype == np.int64
    assert max(labels.values()) + 1 == about.classes
    assert all(colours_kept(image) for image in images)
    assert names[0] == "00000/img00000000.png"


@pytest.mark.parametrize(("most_16", "most_32"), [(0xFFFE, 0xFFFFFFFE), (3, 0xFFFFFFFE), (3, 700)])
def test_many_members_and_far_members(
    most_16: int, most_32: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zip64 is needed from 65,535 members or 4 GiB on; here the limits are brought down."""
    monkeypatch.setattr(module, "MOST_16", most_16)
    monkeypatch.setattr(module, "MOST_32", most_32)
    sink = io.BytesIO()
    made, members = (
        StoredZip(Hashed(sink)),
        {f"{n:03d}.bin": bytes([n]) * (50 + n) for n in range(40)},
    )
    for name, data in members.items():
        made.add(name, data)
    made.finish()
    with zipfile.ZipFile(sink) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == members
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.slow
def test_seventy_thousand_members() -> None:
    sink = io.BytesIO()
    made = StoredZip(Hashed(sink))
    for number in range(70_000):
        made.add(f"{number:08d}", b"%d" % number)
    made.finish()
    with zipfile.ZipFile(sink) as archive:
        assert len(archive.namelist()) == 70_000
        assert archive.read("00069999") == b"69999"
