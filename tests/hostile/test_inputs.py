"""Data as people hand them in, in one table: each is right, or one line that says what would be."""

import json
import os
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path

import faces
import made
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import archive, claiming, files, in_json, jpg, named, people, png, samples, tar
from others import face, im2rec, write_rec
from PIL import Image
from rows import Make, Row, answered

from factory.evaluation.verification import read_bin, write_bin
from factory.prepare.reader import ItemReader
from factory.prepare.sources import list_source
from factory.recipe import InputError

TEACHER = "package:weights/teacher/recognizer.safetensors"


def prepared(source: Path, out: Path, *more: object) -> list[object]:
    return [source, "--out", out, "--licence", "own", *more]


def prepare(
    name: str, make: Callable[[Path], Path], code: int, *words: str, **flags: object
) -> Row:
    """Return a row of prepare; flags are `label="txt"`, and True for those without a value."""
    given: list[object] = []
    for flag, value in flags.items():
        given += [f"--{flag.replace('_', '-')}", *([] if value is True else [value])]
    return Row(name, "prepare", lambda d: prepared(make(d), d / "out", *given), code, words)


def link(folder: Path, name: str, target: str | Path) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, folder / name)
    return folder


def pipe(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(folder / name)
    return folder


def one_image(data: bytes, name: str = "x.jpg") -> Callable[[Path], Path]:
    """Return what makes a folder of two good images and this one."""
    return lambda d: files(d / "s", {"p0/0.jpg": jpg(1), "p1/0.jpg": jpg(2), f"p1/{name}": data})


def tarred(content: dict[str, bytes], mode: str = "w") -> Callable[[Path], Path]:
    return lambda d: tar(d / "a.tar", content, mode)


def zipped(content: dict[str, bytes]) -> Callable[[Path], Path]:
    return lambda d: archive(d / "a.zip", content)


def recorded(labels: list[float], beside: dict[str, bytes] | None = None):
    def make(d: Path) -> Path:
        payloads = {n: face(label, n, jpg(n)) for n, label in enumerate(labels)}
        files(d / "s", beside or {})
        write_rec(d / "s" / "train.rec", payloads)
        return d / "s"

    return make


def listed(name: str, text: str, count: int = 4) -> Callable[[Path], Path]:
    """Return what makes a folder of loose images with a list of labels beside it."""

    def make(d: Path) -> Path:
        files(d, {name: text.encode()})
        return files(d / "s", {f"{n:03d}.jpg": jpg(n) for n in range(count)})

    return make


def indexed(text: str, first: bytes | None = None) -> Callable[[Path], Path]:
    """Return what makes a RecordIO whose index says this; its record 0 may be another."""

    def make(d: Path) -> Path:
        payloads = {n: face(n, n, jpg(n)) for n in range(2)}
        (d / "s").mkdir()
        rec = write_rec(d / "s" / "train.rec", payloads | ({0: first} if first else {}))
        if text:
            rec.with_suffix(".idx").write_text(text)
        return d / "s"

    return make


def with_list(name: str, row: str, make: Callable[[Path], Path], code: int, *words: str) -> Row:
    """Return a row of prepare whose --label is a file beside the source."""
    return Row(
        row,
        "prepare",
        lambda d: prepared(
            make(d),
            d / "out",
            "--label",
            str(d / name.partition("?")[0]) + "?" * ("?" in name) + name.partition("?")[2],
        ),
        code,
        words,
    )


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def flipped(path: Path, at: float) -> Path:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    path.write_bytes(bytes(data))
    return path


LONG = "n" * 300
KEPT = "left out: none"
BOMB = claiming(16_000, 16_000)
TEN = "\n".join(f"{n},p{n // 2}" for n in range(4))

FOLDERS = [
    prepare("plain folder", lambda d: people(d / "s"), 0, "4 images of 2 identities", KEPT),
    prepare("nothing there", lambda d: d / "s", 2, "no such folder"),
    prepare("empty folder", lambda d: files(d / "s", {}), 2, "no images there"),
    prepare("a file of text", lambda d: files(d, {"s.txt": b"x"}) / "s.txt", 2, "no known kind"),
    prepare("loose images", lambda d: files(d / "s", {"a.jpg": jpg(1)}), 2, "no identity's folder"),
    prepare(
        "notebook's copies",
        lambda d: files(people(d / "s"), {".ipynb_checkpoints/0-checkpoint.jpg": jpg(1)}),
        0,
        "4 images of 2 identities",
        "1 hidden",
    ),
    prepare(
        "macOS' resources",
        lambda d: files(people(d / "s"), {"__MACOSX/p0/._0.jpg": b"x", "p1/._0.jpg": b"x"}),
        0,
        "4 images of 2 identities",
        "2 hidden",
    ),
    prepare("only hidden", lambda d: files(d / "s", {".x/a.jpg": jpg(1)}), 2, "1 hidden files"),
    prepare(
        "a linked person",
        lambda d: link(people(d / "s", 1), "p1", people(d / "from", 1) / "p0"),
        0,
        "4 images of 2 identities",
    ),
    prepare("a loop", lambda d: link(people(d / "s"), "p0/up", d / "s"), 2, "p0/up", "loops"),
    prepare(
        "a loop of two", lambda d: link(people(d / "s"), "p0/self", d / "s" / "p0"), 2, "loops"
    ),
    prepare(
        "a dangling link",
        lambda d: link(people(d / "s"), "p1/9.jpg", "/nowhere/x.jpg"),
        0,
        "4 of 5 images",
        "1 unreadable",
    ),
    prepare(
        "a link to itself",
        lambda d: link(people(d / "s"), "p1/9.jpg", d / "s" / "p1" / "9.jpg"),
        0,
        "1 unreadable",
    ),
    prepare("a pipe named jpg", lambda d: pipe(people(d / "s"), "p1/9.jpg"), 0, "1 unreadable"),
    prepare(
        "a name in Latin-1",
        lambda d: named(people(d / "s") / "p1", b"\xe9.jpg", b"broken").parent,
        0,
        "4 of 5 images",
        "1 unreadable",
    ),
    prepare(
        "a folder in Latin-1",
        lambda d: named(people(d / "s") / "p1", b"caf\xe9.jpg", jpg(1)).parent,
        0,
        "1 unreadable",
    ),
    prepare(
        "a name of two lines",
        lambda d: files(people(d / "s"), {"p1/a\nb.jpg": jpg(9)}),
        0,
        "5 of 5 images",
    ),
    prepare(
        "a name with a backslash",
        lambda d: files(people(d / "s"), {"p1/a\\b.jpg": jpg(9)}),
        0,
        "5 of 5 images",
    ),
    prepare(
        "a folder named jpg",
        lambda d: files(people(d / "s"), {"p1/x.jpg/0.jpg": jpg(9)}),
        0,
        "5 of",
    ),
    prepare(
        "train and val",
        lambda d: files(
            d / "s", {f"{p}/n{i}/0.jpg": jpg(i) for p in ("train", "val") for i in (0, 1)}
        ),
        2,
        "train holds no image itself",
        "--identity-level 2",
        "--label folder",
    ),
    prepare(
        "level 2",
        lambda d: files(d / "s", {f"{p}/{i}/0.jpg": jpg(i) for p in ("a", "b") for i in (0, 1)}),
        0,
        "4 images of 4 identities",
        "are two people here",
        identity_level=2,
    ),
    prepare(
        "level 1",
        lambda d: files(d / "s", {f"{p}/{i}/0.jpg": jpg(i) for p in ("a", "b") for i in (0, 1)}),
        0,
        "4 images of 2 identities",
        identity_level=1,
    ),
    prepare(
        "equal folders are one",
        lambda d: files(d / "s", {f"{p}/{i}/0.jpg": jpg(i) for p in ("a", "b") for i in (0, 1)}),
        0,
        "4 images of 2 identities",
        label="folder",
    ),
    prepare("level 0", lambda d: people(d / "s"), 2, "--identity-level 0", identity_level=0),
    prepare("level 9", lambda d: people(d / "s"), 2, "no folder of level 9", identity_level=9),
    prepare("level x", lambda d: people(d / "s"), 2, "--identity-level", identity_level="x"),
    prepare("a path of 300", lambda d: d / LONG, 2, "a name of 300 bytes"),
    prepare("a path of 5,000", lambda d: d / ("x/" * 2500), 2, "accepted are 255"),
    prepare(
        "a name of 255",
        lambda d: files(d / "s", {f"{'n' * 255}/0.jpg": jpg(1)}),
        0,
        "1 of 1 images",
    ),
]

IMAGES = [
    prepare("an empty file", one_image(b""), 0, "2 of 3 images", "1 unreadable"),
    prepare("a page of HTML", one_image(b"<html>"), 0, "1 unreadable"),
    prepare("half a JPEG", one_image(jpg(3)[:700]), 0, "1 unreadable"),
    prepare("half a PNG", one_image(png(3)[:700], "x.png"), 0, "1 unreadable"),
    prepare("a JPEG of 16,000 x 16,000", one_image(BOMB), 0, "64 px", "1 unreadable"),
    prepare("the same with --size", one_image(BOMB), 0, "1 unreadable", size=64),
    prepare("one bad of many", one_image(b"", "1.jpg"), 0, "64 px jpg", "2 of 3 images"),
    prepare("a late PNG", one_image(png(3), "x.png"), 0, "64 px jpg", "lie there as PNG"),
    prepare(
        "a JPEG among PNG",
        lambda d: files(d / "s", {"a/0.png": png(1), "a/1.png": png(2), "b/0.jpg": jpg(3)}),
        0,
        "64 px png",
        "1 images were encoded again",
    ),
    prepare(
        "all of another kind",
        lambda d: files(d / "s", {"a/0.jpg": b"x"}),
        2,
        "none of 1 images looked at can be read",
    ),
    prepare(
        "turned by EXIF",
        lambda d: files(d / "s", {"a/0.jpg": turned(6), "b/0.jpg": jpg(1)}),
        0,
        "1 images were turned upright",
    ),
    prepare(
        "a damaged EXIF",
        one_image(jpg(3)[:2] + b"\xff\xe1\0\x0eExif\0\0MM\0*\xff\xff\xff\xff"[:18] + jpg(3)[2:]),
        0,
        "of 3 images",
    ),
    prepare("two sizes", one_image(jpg(3, 80)), 2, "64 x 64 pixels", "80 x 80", "--size N"),
    prepare("not square", one_image(made.encoded(made.picture(1)[:40])), 2, "64 x 40"),
    prepare("--size 4", lambda d: people(d / "s"), 2, "image.size: 4", size=4),
    prepare("--size of 5,000 digits", lambda d: people(d / "s"), 2, "--size", size="9" * 5000),
    prepare(
        "GIF and TIFF are read",
        lambda d: files(
            d / "s",
            {
                "a/0.gif": made.encoded(made.picture(1), "GIF"),
                "a/1.tiff": made.encoded(made.picture(2), "TIFF"),
            },
        ),
        0,
        "2 of 2 images",
    ),
    prepare(
        "sixteen bits",
        lambda d: files(d / "s", {"a/0.png": sixteen(), "b/0.png": png(1)}),
        0,
        "2 of 2 images",
        "1 images were encoded again",
    ),
]

ARCHIVES = [
    prepare(
        "tar.gz",
        lambda d: tar(d / "a.tar.gz", {"0.jpg": jpg(1), "0.cls": b"0"}, "w:gz"),
        2,
        "unpack it first",
    ),
    prepare("tgz in a folder", lambda d: tar(d / "s" / "a.tgz", {}, "w:gz").parent, 2, "a.tgz"),
    prepare("7z", lambda d: files(d, {"s.7z": b"7z"}) / "s.7z", 2, "unpack it first"),
    prepare(
        "a tar that is compressed", lambda d: tar(d / "a.tar", {}, "w:gz"), 2, "not compressed"
    ),
    prepare(
        "zip",
        zipped({f"id{i // 2}/{i}.jpg": jpg(i) for i in range(4)}),
        0,
        "zip, 4 images of 2 identities",
    ),
    prepare("a zip of text", zipped({"a.txt": b"x"}), 2, "no images there"),
    prepare("no zip", lambda d: files(d, {"a.zip": b"PK no"}) / "a.zip", 2, "no zip"),
    prepare("half a zip", lambda d: cut(zipped({"a/0.jpg": jpg(1)})(d), 0.5), 2, "no zip"),
    prepare(
        "a zip of one folder more",
        zipped({"faces/id0/0.jpg": jpg(1)}),
        2,
        "faces holds no image itself",
    ),
    prepare(
        "the same, by level",
        zipped({"faces/id0/0.jpg": jpg(1)}),
        0,
        "1 of 1 images",
        identity_level=2,
    ),
    prepare(
        "a zip that climbs", zipped({"../../id0/0.jpg": jpg(1)}), 0, "1 of 1 images", label="folder"
    ),
    prepare(
        "a zip of Macs",
        zipped({"id0/0.jpg": jpg(1), "__MACOSX/id0/._0.jpg": b"x"}),
        0,
        "1 images of 1 identities",
        "1 hidden",
    ),
    prepare(
        "two zips of DigiFace",
        lambda d: (
            archive(
                d / "s" / "subjects_0-1_2_imgs.zip", {"0/0.png": png(1), "1/0.png": png(2)}
            ).parent
            if archive(d / "s" / "subjects_2-3_2_imgs.zip", {"2/0.png": png(3)})
            else d
        ),
        0,
        "3 images of 3 identities",
    ),
    prepare(
        "two zips with one folder",
        lambda d: (
            archive(d / "s" / "a.zip", {"0/0.png": png(1)}).parent
            if archive(d / "s" / "b.zip", {"0/1.png": png(2)})
            else d
        ),
        2,
        "folder 0 is in a.zip too",
    ),
    prepare(
        "StyleGAN's labels",
        zipped(
            {
                "00000/a.png": png(1),
                "00000/b.png": png(2),
                "dataset.json": json.dumps(
                    {"labels": [["00000/a.png", 3], ["00000/b.png", 5]]}
                ).encode(),
            }
        ),
        0,
        "2 images of 2 identities",
    ),
    prepare(
        "StyleGAN's without labels",
        zipped({"00000/a.png": png(1), "dataset.json": b'{"labels": null}'}),
        0,
        "1 of 1 images",
    ),
    prepare(
        "StyleGAN's broken labels",
        zipped({"00000/a.png": png(1), "dataset.json": b'{"labels": 3'}),
        2,
        "dataset.json: no JSON",
    ),
    prepare(
        "StyleGAN's labels of lists",
        zipped({"00000/a.png": png(1), "dataset.json": b'{"labels": [[1, 2, 3]]}'}),
        2,
        "no path and label",
    ),
    prepare(
        "labels in JSON, unsaid",
        tarred(samples("json", in_json)),
        2,
        "has no label",
        "--label json:FIELD",
    ),
    prepare(
        "labels in JSON",
        tarred(samples("json", in_json)),
        0,
        "4 images of 2 identities",
        label="json:label",
    ),
    prepare(
        "labels deep in JSON",
        tarred(samples("json", in_json)),
        0,
        "4 images of 2 identities",
        label="json:who.id",
    ),
    prepare(
        "another field",
        tarred(samples("json", in_json)),
        2,
        "no field 'x'",
        "label, who",
        label="json:x",
    ),
    prepare("no field", tarred(samples("json", in_json)), 2, "--label json", label="json"),
    prepare(
        "JSON that is none",
        tarred(samples("json", lambda _: b"{")),
        2,
        "no JSON",
        label="json:label",
    ),
    prepare(
        "JSON 5,000 deep",
        tarred(samples("json", lambda _: b"[" * 5000)),
        2,
        "no JSON",
        label="json:label",
    ),
    prepare(
        "a list as label",
        tarred(samples("json", lambda _: b'{"label": [1]}')),
        2,
        "a name or an integer",
        label="json:label",
    ),
    prepare(
        "true as label",
        tarred(samples("json", lambda _: b'{"label": true}')),
        2,
        "is True",
        label="json:label",
    ),
    prepare(
        "labels in text",
        tarred(samples("txt", lambda n: b"%d\n" % n)),
        0,
        "4 images of 2 identities",
        label="txt",
    ),
    prepare(
        "names in text",
        tarred(samples("txt", lambda n: b"ann" if n else b"bob")),
        0,
        "4 images of 2 identities",
        label="txt",
    ),
    prepare(
        "no text", tarred(samples("txt", lambda _: b"  ")), 2, "a name or an integer", label="txt"
    ),
    prepare("text in Latin-1", tarred(samples("txt", lambda _: b"\xe9")), 2, "UTF-8", label="txt"),
    prepare(
        "names in cls, unsaid",
        tarred(samples("cls", lambda _: b"ann")),
        2,
        "is b'ann'; accepted is an integer",
        "--label cls",
    ),
    prepare(
        "names in cls", tarred(samples("cls", lambda _: b"ann")), 0, "of 1 identities", label="cls"
    ),
    prepare(
        "cls of 5,000 digits",
        tarred(samples("cls", lambda _: b"9" * 5000)),
        2,
        "a name or an integer",
    ),
    prepare("no cls", tarred({"0.jpg": jpg(1)}), 2, "no label (.cls)"),
    prepare("no image", tarred({"0.cls": b"1"}), 2, "no image"),
    prepare(
        "two images", tarred({"0.jpg": jpg(1), "0.png": png(1), "0.cls": b"1"}), 2, "two images"
    ),
    prepare(
        "half a tar",
        lambda d: cut(tarred(samples("cls", lambda n: b"%d" % n))(d), 0.4),
        2,
        "a.tar: ",
    ),
    prepare(
        "a tar of Macs",
        tarred({**samples("cls", lambda n: b"%d" % n), "._000.jpg": b"x"}),
        0,
        "4 images of 2 identities",
        "1 hidden",
    ),
    prepare(
        "a tar that climbs",
        tarred({"../../0.jpg": jpg(1), "../../0.cls": b"1"}),
        0,
        "1 of 1 images",
    ),
    prepare(
        "a tar and --unlabelled",
        tarred(samples("cls", lambda n: b"%d" % n)),
        2,
        "--unlabelled; accepted is a folder",
        unlabelled=True,
    ),
    prepare(
        "a tar and a level",
        tarred(samples("cls", lambda n: b"%d" % n)),
        2,
        "--identity-level 2",
        identity_level=2,
    ),
    prepare(
        "no parquet", lambda d: files(d, {"a.parquet": b"PAR1"}) / "a.parquet", 2, "no parquet file"
    ),
    prepare("no LMDB", lambda d: files(d, {"a.lmdb": b"x" * 9000}) / "a.lmdb", 2, "LMDB"),
]

INDEXES = [
    prepare("an offset below 0", indexed("0\t-5\n"), 2, "offset -5", "KEY, tab, OFFSET"),
    prepare("an offset of 30 digits", indexed(f"0\t{10**30}\n"), 2, "KEY, tab, OFFSET"),
    prepare("a key without end", indexed("inf\t0\n"), 2, "KEY, tab, OFFSET"),
    prepare("an offset behind the end", indexed("0\t99999999\n"), 2, "no record at byte"),
    prepare("1e30 images", indexed("", face(0, 0, b"", (1e30, 2e30))), 2, "images end at"),
    prepare(
        "no number of images", indexed("", face(0, 0, b"", (float("nan"), 1))), 2, "end at nan"
    ),
]
LISTS = [
    prepare(
        "a list beside records",
        recorded(
            [0.0] * 6,
            {"list.txt": "".join(f"{i}\timages/{i // 2}/{i}.jpg\t0\n" for i in range(6)).encode()},
        ),
        0,
        "6 images of 3 identities",
        "labels are the folders of list.txt",
    ),
    prepare(
        "DCFace's list of numbers and paths",
        recorded(
            [0.0] * 6,
            {"list.txt": "".join(f"{i}\t{i // 2}/{i}.jpg\n" for i in range(6)).encode()},
        ),
        0,
        "6 images of 3 identities",
        "labels are the folders of list.txt",
    ),
    prepare(
        "two lines of one record",
        recorded([0.0] * 2, {"list.txt": b"0\tx/0.jpg\t3\n1\tx/1.jpg\t4\n1\ty/2.jpg\t5\n"}),
        2,
        "more than one line of record 1",
    ),
    prepare(
        "an .lst beside records",
        recorded(
            [0.0] * 4,
            {"train.lst": "".join(f"{i}\t{i // 2}.0\t{i}.jpg\n" for i in range(4)).encode()},
        ),
        0,
        "4 images of 2 identities",
    ),
    prepare(
        "a broken list beside",
        recorded([0.0] * 4, {"list.txt": b"hello\n"}),
        2,
        "all its labels are equal",
        "--label cls",
    ),
    prepare(
        "the records' own",
        recorded([0.0] * 4, {"list.txt": b"hello\n"}),
        0,
        "4 images of 1 identities",
        label="cls",
    ),
    prepare(
        "a short list beside",
        recorded([0.0] * 4, {"list.txt": b"0\tx/0.jpg\t0\n"}),
        2,
        "no line of record 1",
    ),
    prepare("labels that are no integers", recorded([0.5] * 4), 2, "label 0.5"),
    prepare("labels that are no numbers", recorded([float("nan")] * 4), 2, "label nan"),
    prepare(
        "records cut off",
        lambda d: cut(recorded([0.0, 1.0])(d) / "train.rec", 0.2).parent,
        2,
        "train.rec",
    ),
    prepare(
        "no index",
        lambda d: (recorded([0.0])(d) / "train.idx").unlink() or d / "s",
        2,
        "train.idx is missing",
    ),
    with_list(
        "l.csv",
        "CSV",
        listed("l.csv", "".join(f"{n:03d}.jpg,p{n // 2}\n" for n in range(4))),
        0,
        "4 images of 2 identities",
    ),
    with_list(
        "l.csv",
        "CSV with names",
        listed("l.csv", "image_id,identity\n" + "".join(f"{n:03d},{n // 2}\n" for n in range(4))),
        0,
        "4 images of 2 identities",
    ),
    with_list(
        "l.tsv",
        "TSV",
        listed("l.tsv", "".join(f"{n:03d}.jpg\t{n // 2}\n" for n in range(4))),
        0,
        "4 images of 2 identities",
    ),
    with_list(
        "l.txt",
        "CelebA's",
        listed("l.txt", "".join(f"{n:03d}.jpg {n // 2}\n" for n in range(4))),
        0,
        "4 images of 2 identities",
    ),
    with_list(
        "l.lst",
        "im2rec's",
        listed("l.lst", "".join(f"{n}\t{n // 2}\t{n:03d}.jpg\n" for n in range(4))),
        0,
        "4 images of 2 identities",
    ),
    with_list(
        "l.json",
        "JSON",
        listed("l.json", json.dumps({f"{n:03d}.jpg": n // 2 for n in range(4)})),
        0,
        "4 images of 2 identities",
    ),
    with_list(
        "l.csv?path=file&label=who",
        "named columns",
        listed("l.csv", "who,x,file\n" + "".join(f"p{n // 2},1,{n:03d}.jpg\n" for n in range(4))),
        0,
        "4 images of 2 identities",
    ),
    with_list(
        "l.csv?label=nobody",
        "no such column",
        listed("l.csv", "image,label\n000.jpg,1\n"),
        2,
        "no column 'nobody'",
        "image, label",
    ),
    with_list(
        "l.csv",
        "half of them",
        listed("l.csv", "000.jpg,1\n001.jpg,2\n009.jpg,2\n"),
        0,
        "2 images of 2 identities",
        "1 paths of the list, as 009.jpg, are not there",
        "2 images, as 002.jpg, are not in the list",
    ),
    with_list(
        "l.csv", "none of them", listed("l.csv", "a.jpg,1\nb.jpg,2\n"), 2, "none of its 2 paths"
    ),
    with_list(
        "l.csv",
        "two labels of one",
        listed("l.csv", "000.jpg,1\n000.jpg,2\n"),
        2,
        "has the labels 1 and 2",
    ),
    with_list(
        "l.csv",
        "ragged",
        listed("l.csv", "image,label\n000.jpg,1\n001.jpg\n"),
        2,
        "line 3 has 1 of 2 columns",
    ),
    with_list(
        "l.csv",
        "no label",
        listed("l.csv", "image,label\n000.jpg,\n"),
        2,
        "the label of line 2",
        "a name or an integer",
    ),
    with_list("l.csv", "empty list", listed("l.csv", ""), 2, "it names no image"),
    with_list("l.csv", "binary list", listed("l.csv", "\0\1\2,\0\n"), 2, "l.csv"),
    with_list("l.json", "a number as JSON", listed("l.json", "3"), 2, "its labels are int"),
    with_list("l.json", "broken JSON", listed("l.json", "{"), 2, "JSONDecodeError"),
    with_list("l.json", "deep JSON", listed("l.json", "[" * 9000), 2, "l.json"),
    prepare("no such list", lambda d: people(d / "s"), 2, "no such file", label="nobody.csv"),
    prepare("a list of 300", lambda d: people(d / "s"), 2, "no such file", label=LONG),
    prepare(
        "txt of a folder", lambda d: people(d / "s"), 2, "no source of such labels", label="txt"
    ),
    prepare(
        "a column of a folder",
        lambda d: people(d / "s"),
        2,
        "no source of such labels",
        label="column:x",
    ),
    prepare(
        "label and unlabelled",
        lambda d: people(d / "s"),
        2,
        "not with --unlabelled",
        label="l.csv",
        unlabelled=True,
    ),
]


def turned(orientation: int) -> bytes:
    tag = Image.Exif()
    tag[0x112] = orientation
    return made.encoded(made.picture(5), "JPEG", exif=tag)


def sixteen() -> bytes:
    return made.encoded(Image.fromarray(made.picture(2)[..., 0].astype(np.uint16) * 257), "PNG")


def pool(d: Path, people: int = 8, each: int = 3) -> Path:
    return Path(faces.make_pool(d / "pool", people, each))


def paired(name: str, text: str | bytes, code: int, *words: str, more: tuple = ()) -> Row:
    """Return a row of make_pairs with a file of pairs of images p0/0.jpg to p9/1.jpg."""

    def make(d: Path) -> list[object]:
        data = text if isinstance(text, bytes) else text.encode()
        files(d, {"pairs.txt": data})
        source = files(
            d / "s", {f"p{n}/p{n}_{k:04d}.jpg": jpg(n) for n in range(8) for k in (1, 2)}
        )
        return [source, "--to", d / "x.bin", "--pairs", d / "pairs.txt", *more]

    return Row(name, "make_pairs", make, code, words)


LFW = "".join(f"p{n}\t1\t2\n" for n in range(8)) + "".join(
    f"p{n}\t1\tp{n + 1}\t2\n" for n in range(7)
)
CSV = "".join(f"p{n}/p{n}_0001.jpg,p{n}/p{n}_0002.jpg,1\n" for n in range(8)) + "".join(
    f"p{n}/p{n}_0001.jpg,p{n + 1}/p{n + 1}_0002.jpg,0\n" for n in range(7)
)


def pairs(name: str, code: int, *words: str, more: tuple[object, ...]) -> Row:
    """Return a row of make_pairs on a dataset of 8 people."""
    return Row(name, "make_pairs", lambda d: [pool(d), "--to", d / "x.bin", *more], code, words)


PAIRS = [
    paired("LFW's pairs", LFW, 0, "15 pairs of 16 images"),
    paired("LFW's with a head", "10\t300\n" + LFW, 0, "15 pairs"),
    paired("CSV of pairs", CSV, 0, "15 pairs of 16 images"),
    paired("CSV with a head", "one,two,same\n" + CSV, 0, "15 pairs"),
    paired("blanks", CSV.replace(",", " "), 0, "15 pairs"),
    paired("CSV without suffixes", CSV.replace(".jpg", ""), 0, "15 pairs"),
    paired(
        "an image that is not there", LFW + "nobody\t1\t2\n", 2, "2 images, as nobody/nobody_0001"
    ),
    paired("a third word", CSV + "a.jpg,b.jpg,maybe\n", 2, "line 16", "a.jpg b.jpg maybe"),
    paired("-1 for 0", CSV.replace(",0\n", ",-1\n"), 2, "line 9"),
    paired("four words", LFW + "a b c d\n", 2, "line 16", "a b c d"),
    paired("one kind", "".join(f"p{n}\t1\t2\n" for n in range(8)) * 2, 2, "16 of one person"),
    paired("too few", "p0\t1\t2\n", 2, "1 pairs", "10 or more"),
    paired("nothing", "", 2, "0 pairs"),
    paired("Latin-1", b"\xe9\t1\t2\n", 2, "no text in UTF-8"),
    paired("an image above", CSV + "../x.jpg,/etc/passwd,0\n", 2, "2 images, as ../x.jpg"),
    paired("a name of 300", CSV + f"{LONG}.jpg,b.jpg,0\n", 2, "images, as nnn"),
    paired("--skip beside", LFW, 2, "--skip 2: with --pairs FILE", more=("--skip", 2)),
    paired("--folds beside", LFW, 2, "--folds 2", more=("--folds", 2)),
    pairs("pairs", 0, "20 pairs of", more=("--pairs", 20, "--folds", 2)),
    pairs("no such file", 2, "No such file", more=("--pairs", "nobody.txt")),
    pairs("a name of 300 as pairs", 2, "File name too long", more=("--pairs", LONG)),
    pairs("everybody skipped", 2, "--skip 8", "less than 8", more=("--pairs", 20, "--skip", 8)),
    pairs("more than everybody", 2, "--skip 99999", "8 identities", more=("--skip", 99999)),
    pairs("--skip -1", 2, "--skip -1", more=("--skip", -1)),
    pairs("no pairs", 2, "accepted is a multiple of 20", more=("--pairs", 0)),
    pairs("-20 pairs", 2, "pairs: -20", more=("--pairs", -20)),
    pairs("odd pairs", 2, "accepted is a multiple of 20", more=("--pairs", 7)),
    pairs("pairs of 5,000 digits", 2, "5000 digits", more=("--pairs", "9" * 5000)),
    pairs("one fold", 2, "folds", more=("--pairs", 20, "--folds", 1)),
    pairs("too many pairs", 2, "lower --pairs", more=("--pairs", 2000)),
    pairs("no such groups", 2, "--groups", "no such file", more=("--groups", "nobody.json")),
    pairs("groups of 300", 2, "300 characters", more=("--groups", LONG)),
    pairs("no such composition", 2, "nobody", more=("--without", "nobody")),
    Row(
        "pairs of nothing",
        "make_pairs",
        lambda d: [d / "s", "--to", d / "x.bin"],
        2,
        ("no committed shards",),
    ),
    Row("pairs to a folder", "make_pairs", lambda d: [pool(d), "--to", d], 2, ("a folder",)),
    Row("pairs to text", "make_pairs", lambda d: [pool(d), "--to", d / "x.txt"], 2, (".bin",)),
    Row(
        "pairs to nowhere",
        "make_pairs",
        lambda d: [pool(d), "--to", d / "no" / "x.bin"],
        2,
        ("no folder",),
    ),
    Row(
        "pairs to 300",
        "make_pairs",
        lambda d: [pool(d), "--to", d / f"{LONG}.bin"],
        2,
        ("too long",),
    ),
]


def measured(d: Path, *more: object) -> list[object]:
    return [d, "--recognizer", TEACHER, "--resize", "--r", 0.5, *more]


def damaged(name: str, damage: Callable[[Path], object], code: int, *words: str) -> Row:
    """Return a row of measure on a dataset whose first tar was damaged."""

    def make(d: Path) -> list[object]:
        made_pool = pool(d)
        damage(next((made_pool / "shards").glob("*.tar")))
        return measured(made_pool)

    return Row(name, "measure", make, code, words)


MEASURES = [
    damaged("a whole tar", lambda path: path, 0, "genuine"),
    *(
        damaged(f"a tar flipped at {at}", lambda path, at=at: flipped(path, at), -2, "dataset ")
        for at in (0.0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999)
    ),
    *(
        damaged(f"a tar cut to {keep}", lambda path, keep=keep: cut(path, keep), 1, "shard i0")
        for keep in (0.0, 0.01, 0.3, 0.5, 0.9, 0.999)
    ),
    damaged(
        "another tar",
        lambda path: tar(path, {"0_0.jpg": jpg(1), "0_0.cls": b"0"}),
        1,
        "not what its manifest says",
    ),
    damaged(
        "a tar with more behind",
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        1,
        "shard i0",
    ),
    damaged("text as tar", lambda path: path.write_text("x" * 2000), 1, "shard i0"),
    Row("measure nothing", "measure", lambda d: measured(d / "s"), 2, ("no finished shard",)),
    Row("measure 300", "measure", lambda d: measured(d / LONG), 2, ("a name of 300 bytes",)),
]

OPENS: dict[str, Make] = {
    "verify": lambda d: [d / "pool"],
    "export": lambda d: [d / "pool", "--format", "wds", "--to", d / "out"],
    "make_pairs": lambda d: [d / "pool", "--to", d / "x.bin", "--pairs", 20, "--folds", 2],
    "measure": lambda d: measured(d / "pool"),
    "prepare": lambda d: prepared(d / "pool", d / "out"),
    "report": lambda d: [d / "pool", "--to", d / "r.html"],
    "train_attributes": lambda d: [d / "pool", "--out", d / "attributes"],
}
SHAPES = ("[]", "null", '"x"', '{"shards": 3}', "{", '{"recipe": []}')


def reshaped(command: str, file: str, shape: str) -> Row:
    """Return a row of a command on a dataset one of whose files is JSON of another shape."""

    def make(d: Path) -> list[object]:
        (pool(d) / file).write_text(shape)
        return OPENS[command](d)

    return Row(f"{file} of {shape}", command, make, -2, (file.partition(".")[0],))


LENGTHS = [
    Row(f"a name of 300 ({number})", command, lambda d, more=more: more(d), 2, ("accepted",))
    for number, (command, more) in enumerate(
        [
            ("plan", lambda d: [LONG]),
            ("verify", lambda d: [d / LONG]),
            ("export", lambda d: [d / LONG, "--format", "wds", "--to", d / "out"]),
            ("export", lambda d: [pool(d), "--format", "wds", "--to", d / LONG]),
            ("make_pairs", lambda d: [d / LONG, "--to", d / "x.bin"]),
            ("make_pairs", lambda d: [pool(d), "--to", d / "x.bin", "--without", LONG]),
            ("measure", lambda d: [pool(d), "--recognizer", LONG]),
            ("measure", lambda d: [pool(d), "--recognizer", f"onnx:{LONG}"]),
            ("measure", lambda d: measured(pool(d), "--against", LONG)),
            ("prepare", lambda d: prepared(pool(d), d / LONG)),
            (
                "prepare",
                lambda d: prepared(people(d / "s"), d / "out", "--align", "--detector", LONG),
            ),
            ("prepare", lambda d: prepared(pool(d), d / "out", "--recognizer", LONG)),
            ("report", lambda d: [LONG, "--to", d / "r.html"]),
            ("evaluate", lambda d: ["--recognizer", TEACHER, "--benchmarks", d / LONG]),
            ("train_attributes", lambda d: [LONG, "--out", d / "out"]),
        ]
    )
]
STATED = [
    Row(
        "no licence", "prepare", lambda d: [people(d / "s"), "--out", d / "out"], 2, ("--licence",)
    ),
    prepare("an empty licence", lambda d: people(d / "s"), 2, "--licence", licence=""),
    prepare("a licence of two lines", lambda d: people(d / "s"), 2, "one line", licence="a\nb"),
    Row(
        "a dataset of two lines",
        "prepare",
        lambda d: prepared(people(d / "s"), d / "out", "--name", "a\nb"),
        2,
        ("--name",),
    ),
    prepare("no actors", lambda d: people(d / "s"), 2, "--actors -1", actors=-1),
    prepare("no images a shard", lambda d: people(d / "s"), 2, "--shard-images 0", shard_images=0),
    prepare("--align alone", lambda d: people(d / "s"), 2, "--detector", align=True),
    prepare("an unknown recognizer", lambda d: people(d / "s"), 2, "keras", recognizer="keras:x"),
    Row(
        "into somebody's folder",
        "prepare",
        lambda d: prepared(people(d / "s"), files(d / "mine", {"me.jpg": jpg(1)})),
        2,
        ("holds me.jpg",),
    ),
]

SHAPED = [
    *(
        reshaped(command, "manifest.json", shape)
        for command in ("export", "make_pairs", "prepare", "report")
        for shape in SHAPES
    ),
    *(
        reshaped(command, "recipe.json", shape)
        for command in ("verify", "export", "make_pairs", "prepare", "report")
        for shape in SHAPES[:3]
    ),
]
TABLE = [
    *FOLDERS,
    *IMAGES,
    *ARCHIVES,
    *LISTS,
    *INDEXES,
    *PAIRS,
    *MEASURES,
    *LENGTHS,
    *STATED,
    *SHAPED,
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.command}: {row.name}")
def test_it_is_right_or_one_line(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answered(row, tmp_path, monkeypatch, capfd)


def test_the_table_is_long_enough_and_names_no_row_twice() -> None:
    names = [(row.command, row.name) for row in TABLE]
    assert len(names) >= 100 and len(set(names)) == len(names)


def test_a_small_file_that_claims_much_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_bin(path, [BOMB, jpg(1)] * 10, [True, False] * 5)
    from factory.recognition.images import decode

    began = time.perf_counter()
    with pytest.raises(InputError, match=r"claims 16,000 x 16,000 pixels"):
        decode(read_bin(path).images[0], "image")
    assert time.perf_counter() - began < 0.1


# What strangers' bytes may do: nothing but be listed, read or refused.
BYTES = st.binary(max_size=600)
QUIET = settings(
    max_examples=int(os.environ.get("HOSTILE_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.text("ab./_-\\\u00e9 0", min_size=1, max_size=12)
MEMBERS = st.dictionaries(
    st.tuples(NAMES, st.sampled_from([".jpg", ".cls", ".json", ".txt", "", ".png"])).map("".join),
    st.one_of(BYTES, st.sampled_from([jpg(1), b"0", b"-1", b"[]", b"{}", b'{"label": 1}'])),
    max_size=6,
)
LABELS = st.sampled_from(["", "cls", "txt", "json:label", "json:a.b"])


def outcome(source: Path, label: str = "") -> None:
    """List a source and read all its images; an InputError is as good."""
    try:
        store, listing = list_source(str(source), label=label)
        reader = ItemReader(store, listing.kind)
        for images in listing.images:
            for item in images:
                assert isinstance(reader.read(item), bytes)
        reader.close()
    except InputError as error:
        assert "\n" not in str(error)


@QUIET
@given(MEMBERS, LABELS, st.integers(0, 4000), st.integers(0, 255))
def test_any_tar_is_read_or_refused(tmp_path: Path, content, label, at, value) -> None:
    path = tar(tmp_path / "a.tar", content)
    outcome(path, label)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data)
    outcome(path, label)
    path.write_bytes(data[:at])
    outcome(path, label)


@QUIET
@given(MEMBERS, st.integers(0, 4000), st.integers(0, 255))
def test_any_zip_is_read_or_refused(tmp_path: Path, content, at, value) -> None:
    path = archive(tmp_path / "a.zip", {name: data for name, data in content.items() if name})
    outcome(path, "folder")
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data)
    outcome(path, "folder")
    path.write_bytes(data[:at])
    outcome(path)


@QUIET
@given(
    st.lists(st.tuples(st.floats(width=32), BYTES), min_size=1, max_size=4),
    st.integers(0, 2000),
    st.integers(0, 255),
    st.one_of(st.none(), BYTES),
)
def test_any_recordio_is_read_or_refused(tmp_path: Path, records, at, value, index) -> None:
    path = im2rec(tmp_path / "a.rec", [(0, b"")])
    write_rec(path, {n: face(label, n, data) for n, (label, data) in enumerate(records)})
    outcome(path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data)
    outcome(path)
    if index is not None:
        path.with_suffix(".idx").write_bytes(index)
        outcome(path)


class Payload:
    """What runs a command when it is unpickled by a careless reader."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@QUIET
@given(
    st.one_of(
        BYTES,
        st.recursive(
            st.one_of(BYTES, st.booleans(), st.integers(), st.none(), st.text(max_size=4)),
            lambda inner: st.lists(inner, max_size=4),
            max_leaves=12,
        ).map(pickle.dumps),
    ),
    st.integers(0, 3000),
    st.integers(0, 255),
)
def test_any_bin_is_read_or_refused(tmp_path: Path, data, at, value) -> None:
    mark = tmp_path / "ran"
    good = pickle.dumps(([jpg(1)] * 20, [True, False] * 5))
    bad = bytearray(good)
    bad[at % len(bad)] = value
    evil = pickle.dumps(([Payload(str(mark))] * 20, [True] * 10))
    for content in (data, bytes(bad), good[:at], evil, data + evil):
        path = tmp_path / "x.bin"
        path.write_bytes(content)
        try:
            read_bin(path)
        except InputError as error:
            assert "\n" not in str(error)
    assert not mark.exists()


@QUIET
@given(
    st.one_of(
        BYTES,
        st.tuples(
            st.sampled_from(
                [
                    jpg(1),
                    png(1),
                    made.encoded(made.picture(1), "BMP"),
                    made.encoded(made.picture(1), "GIF"),
                    made.encoded(made.picture(1), "WEBP"),
                    made.encoded(made.picture(1), "TIFF"),
                    made.encoded(made.picture(1), "PPM"),
                ]
            ),
            st.integers(0, 3000),
            BYTES,
        ).map(lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]),
    )
)
def test_any_bytes_are_an_image_or_refused(data) -> None:
    from factory.datasets.decode import DecodeError, decode, read_header, upright

    try:
        header = read_header(data)
        image = upright(decode(data), header.orientation)
    except DecodeError as error:
        assert "\n" not in str(error) and "subsampling" not in str(error)
        return
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert struct.calcsize("B") == image.itemsize
