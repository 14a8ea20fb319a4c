"""Sources as people have them, to the end: labels, bytes, licence, what is said on the way."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import hands
import made
import numpy as np
import patches
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import archive, files, jpg, png

from factory.datasets.decode import decode
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.evaluation.dataset import StoredSample, samples
from factory.evaluation.verification import read_bin
from factory.export.export import FORMATS, Options, export
from factory.export.listed_pairs import write_listed_pairs
from factory.prepare.run import Preparation, Wishes, plan, prepare
from factory.recipe import InputError


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    hands.handed(monkeypatch)


def make(source: Path, out: Path, **wishes: Any) -> tuple[Preparation, list[StoredSample]]:
    """Prepare a source; what comes out is whole."""
    given = plan(Wishes(**{"source": str(source), "licence": "CC0-1.0", **wishes}))
    prepare(given, Store(out), 1, lambda line: None)
    assert verify(Store(out)) == []
    return given, list(samples(Store(out)))


def pixels(found: list[StoredSample]) -> Counter[tuple[int, str]]:
    return Counter(
        (int(s.sidecar["source_identity"]), hashlib.sha256(decode(s.encoded)).hexdigest())
        for s in found
    )


@pytest.mark.parametrize("form", FORMATS)
def test_our_exports_are_read_back(here, tmp_path: Path, form: str) -> None:
    """Labels, pixels, licence, models and kind of source: all as they were exported."""
    patched = patches.make(tmp_path / "data", tmp_path / "work")
    export(patched.store, Store(tmp_path / form), Options(form))
    _, found = make(tmp_path / form, tmp_path / "out")
    assert pixels(found) == patched.pixels
    before, after = load_manifest(patched.store), load_manifest(Store(tmp_path / "out"))
    assert after.licence == before.licence == "CC-BY-NC-4.0"
    assert {(m.name, m.location, m.sha256, m.licence) for m in after.models} == {
        (m.name, m.location, m.sha256, m.licence) for m in before.models
    }
    assert after.digitalSourceType == before.digitalSourceType


def test_vec2faces_lmdb(here, tmp_path: Path) -> None:
    import lmdb
    import msgpack

    images = [(n // 2, jpg(n)) for n in range(6)]
    (tmp_path / "folder").mkdir()
    for path, inside in ((tmp_path / "hsface.lmdb", False), (tmp_path / "folder", True)):
        env = lmdb.open(str(path), subdir=inside, map_size=1 << 24)
        with env.begin(write=True) as txn:
            for n, (label, data) in enumerate(images):
                txn.put(str(n).encode(), msgpack.dumps((data, label)))
            txn.put(b"__keys__", msgpack.dumps([str(n).encode() for n in range(6)]))
            txn.put(b"__len__", msgpack.dumps(6))
            txn.put(b"__classnum__", msgpack.dumps(3))
        env.close()
        given, found = make(path, tmp_path / f"out{inside}")
        assert given.listing.kind == "lmdb"
        assert [(s.label, s.encoded) for s in found] == images
    env = lmdb.open(str(tmp_path / "hsface.lmdb"), subdir=False, map_size=1 << 24)
    for key, value in ((b"__keys__", b"\x93"), (b"3", b"pickled"), (b"3", msgpack.dumps(5))):
        with env.begin(write=True) as txn:
            kept = txn.get(key)
            txn.put(key, value)
        with pytest.raises(InputError, match=r"accepted is LMDB of msgpack"):
            plan(Wishes(str(tmp_path / "hsface.lmdb"), "own"))
        with env.begin(write=True) as txn:
            txn.put(key, kept)
    env.close()


def test_lmdb_without_its_library_says_which(tmp_path: Path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lmdb", None)
    path = files(tmp_path, {"x.lmdb": b"x"}) / "x.lmdb"
    with pytest.raises(InputError, match=r"needs the package lmdb.*face-data-factory\[lmdb\]"):
        plan(Wishes(str(path), "own"))


def test_digifaces_zips_keep_their_bytes(here, tmp_path: Path) -> None:
    for start in (0, 2):
        archive(
            tmp_path / "s" / f"subjects_{start}-{start + 1}_2_imgs.zip",
            {f"{n}/{k}.png": png(10 * n + k) for n in (start, start + 1) for k in (0, 1)},
        )
    _, found = make(tmp_path / "s", tmp_path / "out")
    assert [(s.label, s.encoded) for s in found] == [
        (n, png(10 * n + k)) for n in range(4) for k in (0, 1)
    ]


def test_people_of_each_zip_are_others_when_asked(here, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        archive(tmp_path / "s" / f"{name}.zip", {"0/0.png": png(number)})
    given, found = make(tmp_path / "s", tmp_path / "out", identity_level=1)
    assert given.listing.identities == ("a.zip/0", "b.zip/0") and len(found) == 2
    given, _ = make(tmp_path / "s", tmp_path / "one", label="folder")
    assert given.listing.identities == ("0",) and given.listing.count == 2


def test_parquet_of_others(here, tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["bob", "ann"], "_type": "ClassLabel"}}}}
    rows = [
        {"image": {"bytes": jpg(n), "path": None}, "label": n % 2, "who": f"w{n}"} for n in range(4)
    ]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / "s" / "data" / "train-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(names)}), path, row_group_size=1
    )
    given, found = make(tmp_path / "s", tmp_path / "out")
    assert given.listing.identities == ("ann", "bob")
    assert [s.encoded for s in found] == [jpg(1), jpg(3), jpg(0), jpg(2)]
    given, _ = make(tmp_path / "s", tmp_path / "other", label="column:who")
    assert given.listing.identities == ("w0", "w1", "w2", "w3")
    with pytest.raises(InputError, match=r"no column of labels \(nobody\)"):
        plan(Wishes(str(tmp_path / "s"), "own", label="column:nobody"))


def test_a_late_png_loses_no_pixel_and_the_jpegs_keep_their_bytes(here, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    source = files(
        tmp_path / "s",
        {f"p{n:03d}/a.jpg": made.encoded(noise, "PNG") if n == 1 else jpg(n) for n in range(130)},
    )
    given, found = make(source, tmp_path / "out")
    assert given.recipe.image.format == "jpg" and given.recipe.keep
    assert [s.encoded for s in found if s.label != 1] == [jpg(n) for n in range(130) if n != 1]
    assert np.array_equal(decode(found[1].encoded), noise)
    _, found = make(source, tmp_path / "forced", format="jpg")
    assert found[1].encoded.startswith(b"\xff\xd8") and found[1].sidecar["reencoded"]


def test_one_bad_file_changes_no_other(here, tmp_path: Path) -> None:
    names = {f"p{n // 2}/{n}.jpg": b"" if n == 3 else jpg(n) for n in range(6)}
    given, found = make(files(tmp_path / "s", names), tmp_path / "out")
    assert [s.encoded for s in found] == [jpg(n) for n in range(6) if n != 3]
    assert load_manifest(Store(tmp_path / "out")).totals.reasons == {"unreadable": 1}
    assert given.recipe.image.format == "jpg"


def test_sixteen_bits_are_the_picture_of_eight(here, tmp_path: Path) -> None:
    grey = made.picture(2)[..., 0]
    from PIL import Image

    names = {
        "a/8.png": made.encoded(Image.fromarray(grey), "PNG"),
        "b/16.png": made.encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
    }
    _, found = make(files(tmp_path / "s", names), tmp_path / "out")
    eight, sixteen = (decode(s.encoded).astype(int) for s in found)
    assert np.abs(eight - sixteen).max() <= 1


def test_turned_images_stand_upright(here, tmp_path: Path) -> None:
    from PIL import Image

    tag = Image.Exif()
    tag[0x112] = 6
    sides = np.repeat([[[250, 0, 0]], [[0, 0, 250]]], 64, 0).repeat(128, 1).astype(np.uint8)
    names = {"a/0.jpg": made.encoded(sides, "JPEG", exif=tag, quality=95), "b/0.jpg": jpg(1, 128)}
    _, found = make(files(tmp_path / "s", names), tmp_path / "out")
    image = decode(found[0].encoded).astype(int)
    assert (
        image[:, 80:, 0].mean() > 200 and image[:, :50, 2].mean() > 200
    )  # the top is at the right
    assert found[0].sidecar["turned"] and found[1].encoded == jpg(1, 128)


def test_a_name_that_is_no_utf8_is_rejected_in_escapes(here, tmp_path: Path) -> None:
    made.named(files(tmp_path / "s", {"p1/ok.jpg": jpg(1)}) / "p1", b"\xe9.jpg", b"broken")
    given, found = make(tmp_path / "s", tmp_path / "out")
    assert len(found) == 1 and load_manifest(Store(tmp_path / "out")).totals.reasons
    (shard,) = given.shards
    rows = pq.read_table(tmp_path / "out" / "shards" / f"{shard.name}.rejects.parquet").to_pylist()
    assert [(row["reason"], row["source"]) for row in rows] == [("unreadable", "p1/\\xe9.jpg")]


def test_linked_folders_are_people_and_labels_follow_names(here, tmp_path: Path) -> None:
    files(tmp_path / "from", {"x/0.jpg": jpg(5)})
    files(tmp_path / "s", {"p0/0.jpg": jpg(0), "p2/0.jpg": jpg(2)})
    (tmp_path / "s" / "p1").symlink_to(tmp_path / "from" / "x")
    given, found = make(tmp_path / "s", tmp_path / "out")
    assert given.listing.identities == ("p0", "p1", "p2")
    assert [s.encoded for s in found] == [jpg(0), jpg(5), jpg(2)]


LFW = [(f"p{n}", 1, f"p{n}", 2) for n in range(6)] + [
    (f"p{n}", 1, f"p{n + 1}", 2) for n in range(5)
]


def lfw_text() -> str:
    same = "".join(f"{a}\t{i}\t{j}\n" for a, i, b, j in LFW if a == b)
    return "10\t300\n" + same + "".join(f"{a}\t{i}\t{b}\t{j}\n" for a, i, b, j in LFW if a != b)


def test_pairs_of_ones_own_of_a_folder_and_of_a_dataset(here, tmp_path: Path) -> None:
    names = {f"p{n}/p{n}_{k:04d}.jpg": jpg(10 * n + k) for n in range(6) for k in (1, 2)}
    source = files(tmp_path / "lfw", names)
    make(source, tmp_path / "out")
    (tmp_path / "pairs.txt").write_text(lfw_text())
    wanted = [
        names[f"{who}/{who}_{k:04d}.jpg"] for a, i, b, j in LFW for who, k in ((a, i), (b, j))
    ]
    for number, url in enumerate((source, tmp_path / "out")):
        to = tmp_path / f"{number}.bin"
        packed = write_listed_pairs(Store(url), to, tmp_path / "pairs.txt")
        assert (packed.pairs, packed.images) == (11, 12)
        read = read_bin(to)
        assert list(read.images) == wanted and read.same.tolist() == [True] * 6 + [False] * 5
    keys = [f"{n:07d}_000{k}" for n in range(6) for k in (0, 1)]
    lines = [f"{keys[2 * n]},{keys[2 * n + 1]},1" for n in range(6)]
    lines += [f"{keys[2 * n]},{keys[2 * n + 3]},0" for n in range(5)]
    (tmp_path / "keys.csv").write_text("\n".join(lines))
    to = tmp_path / "keys.bin"
    write_listed_pairs(Store(tmp_path / "out"), to, tmp_path / "keys.csv")
    assert list(read_bin(to).images) == wanted
