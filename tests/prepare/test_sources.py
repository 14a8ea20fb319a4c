"""Listing and reading sources that are written here byte by byte, as their formats say."""

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from others import MAGIC, face, im2rec, insightface, write_rec, write_tar
from PIL import Image

from factory.datasets.store import Store
from factory.prepare import recordio
from factory.prepare.recipe import entries_of, plan_shards
from factory.prepare.sources import ItemReader, Listing, list_source
from factory.recipe import InputError


def png(seed: int, size: int = 16) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def content(source: str | Path) -> tuple[Listing, list[list[bytes]]]:
    store, listing = list_source(str(source))
    reader = ItemReader(store, listing.kind)
    found = [[reader.read(entry) for entry in images] for images in listing.images]
    reader.close()
    return listing, found


SAMPLES = [
    (label, png(10 * label + n)) for label, count in ((7, 3), (2, 1), (9, 2)) for n in range(count)
]
EXPECTED = [[png(20)], [png(70), png(71), png(72)], [png(90), png(91)]]


@pytest.mark.parametrize("write", [im2rec, insightface])
def test_both_dialects_of_recordio(tmp_path: Path, write) -> None:
    shuffled = random.Random(1).sample(SAMPLES, len(SAMPLES)) if write is im2rec else SAMPLES
    listing, found = content(write(tmp_path / "train.rec", shuffled))
    assert (listing.kind, listing.identities, listing.count) == ("recordio", ("2", "7", "9"), 6)
    assert [sorted(images) for images in found] == [sorted(images) for images in EXPECTED]
    assert content(tmp_path)[0] == listing  # its folder means the same


def test_a_payload_that_holds_the_magic_is_put_together_again(tmp_path: Path) -> None:
    for shift in range(4):
        image = b"\xff\xd8" + bytes(shift) + MAGIC + b"ab" + MAGIC * 3 + bytes(5) + MAGIC
        _, found = content(im2rec(tmp_path / "x.rec", [(0, image), (1, MAGIC), (1, b"")]))
        assert found == [[image], [MAGIC, b""]]


def test_of_several_labels_the_first_counts(tmp_path: Path) -> None:
    path = write_rec(tmp_path / "x.rec", {n: face(0, n, b"image", (n + 5, 1)) for n in range(3)})
    assert content(path)[0].identities == ("5", "6", "7")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rec: rec.with_suffix(".idx").unlink(), r"train\.idx is missing"),
        (lambda rec: rec.with_suffix(".idx").write_text("0\tx\n"), "accepted are lines KEY, tab"),
        (lambda rec: rec.with_suffix(".idx").write_text("0\t3\n"), "no record at byte 3"),
        (lambda rec: rec.with_suffix(".idx").write_text(""), "names no record"),
        (lambda rec: rec.write_bytes(rec.read_bytes()[:20]), "ends inside the record at byte 0"),
        (lambda rec: write_rec(rec, {0: face(0.5, 0, b"i")}), r"label 0\.5; accepted are integers"),
        (lambda rec: write_rec(rec, {0: face(2.0**25, 0, b"i")}), "accepted are integers 0 to"),
    ],
)
def test_damaged_recordio_is_one_error(tmp_path: Path, damage, message) -> None:
    rec = im2rec(tmp_path / "train.rec", SAMPLES)
    damage(rec)
    with pytest.raises(InputError, match=message):
        list_source(str(rec))


def test_pieces_out_of_order(tmp_path: Path) -> None:
    file = io.BytesIO(MAGIC + struct.pack("<I", 2 << 29 | 4) + b"abcd")
    with pytest.raises(InputError, match="out of order"):
        recordio.read_payload(file, 0, "x")


def test_a_folder_an_identity(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "a/deep/1.jpeg", "a/0.webp", "B/x.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("")
    listing, found = content(tmp_path)
    assert (listing.kind, listing.identities, listing.ignored) == ("folder", ("B", "a", "b"), 2)
    assert found == [[b"B/x.bmp"], [b"a/0.webp", b"a/deep/1.jpeg"], [b"b/10.JPG", b"b/2.png"]]
    before = listing.digest
    assert list_source(str(tmp_path))[1].digest == before
    (tmp_path / "b" / "2.png").write_bytes(b"longer than before")
    assert list_source(str(tmp_path))[1].digest != before


def test_webdataset_tars(tmp_path: Path) -> None:
    files = [
        pair
        for number, (label, image) in enumerate(SAMPLES)
        for pair in (
            (f"./long/{'x' * 120}/{number:03d}.png", image),
            (f"./long/{'x' * 120}/{number:03d}.cls", b"%d\n" % label),
            (f"./long/{'x' * 120}/{number:03d}.json", b"{}"),
        )
    ]
    write_tar(tmp_path / "a-000.tar", files[:9])
    write_tar(tmp_path / "a-001.tar", files[9:])
    listing, found = content(tmp_path)
    assert (listing.kind, listing.identities, listing.ignored) == ("webdataset", ("2", "7", "9"), 6)
    assert found == EXPECTED
    single, part = content(tmp_path / "a-000.tar")
    assert single.identities == ("7",) and part == [EXPECTED[1]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("0.jpg", b"x")], r"sample 0 has no label \(\.cls\)"),
        ([("0.cls", b"1")], "sample 0 has no image"),
        ([("0.jpg", b"x"), ("0.cls", b"one")], r"0\.cls is b'one'; accepted is an integer"),
        ([("0.jpg", b"x"), ("0.cls", b"-1")], "accepted is an integer, 0 or more"),
        ([("0.jpg", b"x"), ("0.png", b"x"), ("0.cls", b"1")], "sample 0 has two images"),
        ([("0.txt", b"x")], "no images there"),
    ],
)
def test_a_tar_that_is_no_webdataset_is_one_error(tmp_path: Path, files, message) -> None:
    with pytest.raises(InputError, match=message):
        list_source(str(write_tar(tmp_path / "a.tar", files)))


def test_a_tar_that_is_compressed_or_cut(tmp_path: Path) -> None:
    files = [("0.png", png(1)), ("0.cls", b"1")]
    with pytest.raises(InputError, match="accepted are whole tars that are not compressed"):
        list_source(str(write_tar(tmp_path / "a.tar", files, "w:gz")))
    path = write_tar(tmp_path / "b.tar", files)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"b\.tar: "):
        list_source(str(path))


def test_of_an_unlabelled_folder_every_image_is_a_person(tmp_path: Path) -> None:
    """FFHQ's folders hold a thousand images each, and no person twice."""
    for name in ("00000/00000.png", "00000/00001.png", "01000/01000.png", "loose.png", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    _, listing = list_source(str(tmp_path), unlabelled=True)
    names = ("00000/00000.png", "00000/00001.png", "01000/01000.png", "loose.png")
    assert listing.identities == names and listing.ignored == 1
    assert [entry.file for (entry,) in listing.images] == list(names)
    write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.cls", b"1")])
    for packed in (tmp_path, tmp_path / "a.tar"):
        with pytest.raises(InputError, match="--unlabelled; accepted is a folder of images"):
            list_source(str(packed), unlabelled=True)


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; accepted: SOURCE/IDENTITY/IMAGE"):
        list_source(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="no such file"):
        list_source(str(tmp_path / "absent.rec"))
    with pytest.raises(InputError, match="no images there"):
        list_source(str(tmp_path))
    (tmp_path / "loose.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 images, as loose\.jpg, lie in no identity's folder"):
        list_source(str(tmp_path))
    (tmp_path / "a.rec").write_bytes(b"")
    (tmp_path / "b.rec").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.rec, b\.rec; accepted is one \.rec file"):
        list_source(str(tmp_path))


def test_a_plan_covers_every_image_once_and_never_overfills_a_shard() -> None:
    draws = random.Random(5)
    for _ in range(200):
        counts = [draws.randint(1, 12) for _ in range(draws.randint(1, 15))]
        most = draws.randint(1, 14)
        shards = plan_shards(counts, most)
        images = tuple(tuple((n, m) for m in range(count)) for n, count in enumerate(counts))
        listing = Listing("folder", tuple(map(str, counts)), images, 0, "")  # type: ignore[arg-type]
        found = [entry for shard in shards for _, _, entry in entries_of(listing, shard)]
        assert found == [pair for identity in images for pair in identity]
        assert all(len(entries_of(listing, shard)) == shard.samples <= most for shard in shards)
        assert len({shard.name for shard in shards}) == len(shards)
        assert [shard.name for shard in shards] == sorted(shard.name for shard in shards)


def test_a_source_behind_a_url(tmp_path: Path) -> None:
    im2rec(tmp_path / "train.rec", SAMPLES)
    listing, found = content(f"file://{tmp_path}/train.rec")
    assert found[1] == EXPECTED[1]
    assert listing == list_source(str(tmp_path))[1]
    assert Store(f"file://{tmp_path}").exists("train.idx")


def test_a_remote_folder_that_changed_is_another_source(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}-changed"
    for store in (Store(url), Store(tmp_path / "local")):
        for name in ("a/0.jpg", "b/0.jpg"):
            store.write(name, name.encode())
    before = list_source(url)[1]
    assert before == list_source(str(tmp_path / "local"))[1]
    Store(url).write("b/0.jpg", b"longer than before")
    assert list_source(url)[1].digest != before.digest
