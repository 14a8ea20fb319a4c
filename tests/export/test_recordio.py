"""Records read back by a reader written here from the format's description."""

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patches import MAGIC, Made, colours_kept, digest, make, pixels

from factory.datasets.store import Store
from factory.datasets.tar import read_tar
from factory.export.about import About
from factory.export.export import Options, export
from factory.export.recordio import check_counts, frame
from factory.recipe import InputError
from factory.recognition.alignment import aligned
from factory.studio.render import TEMPLATE_112


class Record(NamedTuple):
    labels: tuple[float, ...]
    id: int
    id2: int
    image: bytes


def read_payload(data: bytes, offset: int) -> tuple[bytes, int]:
    """Return one payload and where the next begins: parts joined by the magic they lost."""
    parts = []
    while True:
        magic, word = data[offset : offset + 4], struct.unpack_from("<I", data, offset + 4)[0]
        assert magic == MAGIC
        part, size = word >> 29, word & ((1 << 29) - 1)
        assert part == {True: (0, 1), False: (2, 3)}[not parts][part in (1, 3)] or part in (0, 2)
        parts.append(data[offset + 8 : offset + 8 + size])
        offset += 8 + size + -size % 4
        if part in (0, 3):
            return MAGIC.join(parts), offset


def read_record(payload: bytes) -> Record:
    flag, label, id_, id2 = struct.unpack_from("<IfQQ", payload)
    labels = struct.unpack_from(f"<{flag}f", payload, 24) if flag else (label,)
    return Record(labels, id_, id2, payload[24 + 4 * flag :])


def read_indexed(folder: Path) -> dict[int, Record]:
    data = (folder / "train.rec").read_bytes()
    lines = (folder / "train.idx").read_text().splitlines()
    return {
        int(key): read_record(read_payload(data, int(offset))[0])
        for key, offset in (line.split("\t") for line in lines)
    }


def read_in_order(folder: Path) -> Iterator[Record]:
    data, at = (folder / "train.rec").read_bytes(), 0
    while at < len(data):
        payload, at = read_payload(data, at)
        yield read_record(payload)


words = st.lists(st.sampled_from([MAGIC, b"abcd", b"\0\0\0\0", MAGIC[:2], b"x"]), max_size=12)


@settings(deadline=None)
@given(words)
def test_any_payload_survives_and_hides_the_magic(parts: list[bytes]) -> None:
    payload = b"".join(parts)
    framed = frame(payload)
    assert len(framed) % 4 == 0
    assert read_payload(framed, 0) == (payload, len(framed))
    # a reader that looks for records finds the magic at their heads and nowhere else
    heads, at = [], 0
    while at < len(framed):
        heads.append(at)
        size = struct.unpack_from("<I", framed, at + 4)[0] & ((1 << 29) - 1)
        at += 8 + size + -size % 4
    assert heads == [i for i in range(0, len(framed), 4) if framed[i : i + 4] == MAGIC]


@pytest.mark.parametrize("format", ["arcface_torch", "cvlface"])
def test_im2rec_labels_and_pixels(format: str, tmp_path: Path) -> None:
    made = make(tmp_path / "data", tmp_path / "work", magic=True)
    folder = tmp_path / "acme_v1"
    about = export(made.store, Store(folder), Options(format))
    records = read_indexed(folder)
    assert sorted(records) == list(range(about.images))
    assert [r.id for r in read_in_order(folder)] == list(range(about.images))
    found = Counter((int(r.labels[0]), r.image) for r in records.values())
    assert found == made.encoded
    assert {label for label, _ in found} == set(range(about.classes))
    assert all(colours_kept(pixels(r.image)) for r in records.values())
    assert any(MAGIC in r.image for r in records.values())
    labels = [int(records[key].labels[0]) for key in range(about.images)]
    assert sum(a == b for a, b in pairwise(labels)) < len(labels) // 2


@pytest.mark.parametrize("format", ["arcface_torch", "cvlface"])
def test_insightface_dialect_finds_every_identity(
    format: str, dataset: Made, tmp_path: Path
) -> None:
    folder = tmp_path / "acme_v1"
    about = export(dataset.store, Store(folder), Options(format, dialect="insightface"))
    records = read_indexed(folder)
    header = records[0]
    assert header.image == b"" and header.id2 == 1
    assert header.labels == (about.images + 1, about.images + 1 + about.classes)
    assert sorted(records) == list(range(int(header.labels[1])))
    found: Counter[tuple[int, str]] = Counter()
    for label, key in enumerate(range(int(header.labels[0]), int(header.labels[1]))):
        first, last = map(int, records[key].labels)
        assert records[key].image == b"" and records[key].id == key
        for image in range(first, last):
            assert records[image].labels == (label,)
            found[label, digest(pixels(records[image].image))] += 1
    assert found == dataset.pixels


@pytest.mark.parametrize("dialect", ["im2rec", "insightface"])
def test_the_tables_agree_with_the_records(
    dialect: str, run: Callable[..., tuple[Path, About]]
) -> None:
    folder, about = run("cvlface", dialect=dialect)
    records = read_indexed(folder)
    rows = [line.split("\t") for line in (folder / "train.tsv").read_text().splitlines()]
    keys = [int(key) for key, _, _ in rows]
    # CVLface pairs row n with the n-th key of its list, which the header of insightface shortens
    assert keys == sorted(keys) == list(range(keys[0], keys[0] + about.images))
    assert all(records[int(key)].labels == (int(label),) for key, _, label in rows)
    assert all(path.startswith(f"{label}/") for _, path, label in rows)
    assert len({path for _, path, _ in rows}) == len(rows)
    points = (folder / "ldmk_5points.csv").read_text().splitlines()
    assert points[0] == "idx," + ",".join(f"ldmk_{n}" for n in range(10))
    assert [int(line.split(",")[0]) for line in points[1:]] == list(range(len(rows)))
    left_eye, right_eye = (list(map(float, points[1].split(",")[a : a + 2])) for a in (1, 3))
    assert left_eye == pytest.approx([38.2946 / 112, 51.6963 / 112], abs=1e-6)
    assert right_eye == pytest.approx([73.5318 / 112, 51.5014 / 112], abs=1e-6)


def test_landmarks_are_where_the_detectors_points_came_to_lie(tmp_path: Path) -> None:
    """Photographs with a dot at each point: the dots are found in the aligned images."""
    scattered = np.random.default_rng(0).normal(0.0, 4.0, (9, 4, 5, 2))
    points = (TEMPLATE_112 @ np.array([[1.2, 0.5], [-0.5, 1.2]]) + [190, 60] + scattered).round(2)
    detected = {place: points[place].tolist() for place in np.ndindex(9, 3)}  # of the fourth, none

    def facts(identity: int, slot: int) -> dict[str, Any]:
        place = identity, slot
        return {"face": {"points": detected[place], "score": 0.9}} if place in detected else {}

    made = make(tmp_path / "data", tmp_path / "work", facts=facts)
    folder = tmp_path / "kit"
    export(made.store, Store(folder), Options("cvlface"))
    rows = [line.split(",")[1:] for line in (folder / "ldmk_5points.csv").read_text().splitlines()]
    shares = np.array(rows[1:], np.float64).reshape(-1, 5, 2)
    template = np.abs(shares - TEMPLATE_112 / 112).max((1, 2)) < 1e-6
    images = {encoded: place for place, encoded in stored(made.store).items()}
    records = read_indexed(folder)
    seen = 0
    for number, (share, plain) in enumerate(zip(shares, template, strict=True)):
        identity, slot = images[records[number].image]
        assert plain == (slot == 3)
        if plain:
            continue
        photograph = np.zeros((400, 400, 3), np.uint8)
        for x, y in points[identity, slot]:
            across, down = np.meshgrid(np.arange(400) - x, np.arange(400) - y)
            dot = 255 * np.exp(-(across**2 + down**2) / 18)
            photograph = np.maximum(photograph, dot.astype(np.uint8)[..., None])
        view = aligned(photograph, points[identity, slot], 112)[..., 0].astype(float)
        for x, y in share * 112:
            left, top = round(x) - 4, round(y) - 4
            near = view[top : top + 9, left : left + 9]
            across, down = np.meshgrid(np.arange(9), np.arange(9))
            middle = np.array([(near * across).sum(), (near * down).sum()]) / near.sum()
            assert np.hypot(middle[0] + left - x, middle[1] + top - y) < 0.6
            seen += 1
    assert seen > 100


def stored(store: Store) -> dict[tuple[int, int], bytes]:
    """Return the bytes of each image of a dataset by identity and slot."""
    found = {}
    for name in store.list("shards"):
        if name.endswith(".tar"):
            with store.local(name) as path:
                for key, parts in read_tar(path):
                    identity, slot = map(int, key.split("_"))
                    found[identity, slot] = parts["jpg"]
    return found


def test_what_float32_cannot_count_is_refused() -> None:
    check_counts(10**9, 1 << 24, "im2rec")
    with pytest.raises(InputError, match="16777217 identities"):
        check_counts(10**9, (1 << 24) + 1, "im2rec")
    check_counts(16_000_000, 777_215, "insightface")
    with pytest.raises(InputError, match="accepted is --dialect im2rec"):
        check_counts(16_000_000, 777_216, "insightface")
