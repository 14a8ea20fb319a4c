import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.datasets.manifest import COMMIT, MANIFEST, REJECTS, TAR, shard_file
from factory.datasets.store import Store
from factory.datasets.tar import read_tar, write_tar
from factory.datasets.verify import Fault, repair, verify
from factory.recipe import InputError

FIRST, SECOND = "i0000000-0000003-s0000-0004", "i0000003-0000006-s0000-0004"
Samples = list[tuple[str, dict[str, bytes]]]


@pytest.fixture
def store(made_dataset: Callable[..., Store]) -> Store:
    return made_dataset()


def kinds(faults: list[Fault]) -> list[tuple[str, str]]:
    return [(fault.kind, fault.name) for fault in faults]


def file_of(store: Store, name: str) -> Path:
    assert store.root is not None
    return store.root / name


def rewrite(store: Store, name: str, change: Callable[[Samples], Samples]) -> None:
    """Replace a shard by a changed one that its manifest agrees with: a faulty writer's work."""
    path = file_of(store, shard_file(name, TAR))
    sha256, size = write_tar(path, change(list(read_tar(path.read_bytes()))))
    edit(store, shard_file(name, COMMIT), sha256=sha256, bytes=size)


def edit(store: Store, name: str, **changes: object) -> None:
    raw = json.loads(store.read(name)) | changes
    store.write(name, json.dumps(raw).encode())


def test_a_whole_dataset_has_no_faults(store: Store) -> None:
    assert verify(store) == []


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset"):
        verify(Store(tmp_path))


@pytest.mark.parametrize("part", ["header", "label", "padding", "image", "end"])
def test_one_flipped_byte_is_named(store: Store, part: str) -> None:
    path = file_of(store, shard_file(SECOND, TAR))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        label, image = (next(m for m in tar if m.name.endswith(end)) for end in (".cls", ".jpg"))
    offset, size = image.offset_data, image.size
    at = {
        "header": offset - 512 + 3,
        "label": label.offset_data,
        "padding": offset + size,
        "image": offset + 9,
        "end": len(data) - 1,
    }[part]
    data[at] ^= 1
    path.write_bytes(data)
    faults = verify(store)
    assert ("changed_tar", shard_file(SECOND, TAR)) in kinds(faults)
    assert {fault.name for fault in faults} == {shard_file(SECOND, TAR)}


@pytest.mark.parametrize("keep", [0, 1, 511, 5000, -1])
def test_a_truncated_tar(store: Store, keep: int) -> None:
    path = file_of(store, shard_file(FIRST, TAR))
    path.write_bytes(path.read_bytes()[:keep])
    assert kinds(verify(store)) == [("truncated_tar", shard_file(FIRST, TAR))]


def test_bytes_after_the_end(store: Store) -> None:
    with file_of(store, shard_file(FIRST, TAR)).open("ab") as file:
        file.write(bytes(512))
    assert kinds(verify(store)) == [("changed_tar", shard_file(FIRST, TAR))]


@pytest.mark.parametrize(
    ("lost", "kind", "named"),
    [
        ((COMMIT,), "orphan_tar", TAR),
        ((TAR,), "orphan_manifest", COMMIT),
        ((COMMIT, TAR), "orphan_rejects", REJECTS),
        ((COMMIT, TAR, REJECTS), "missing_shard", TAR),
        ((REJECTS,), "changed_rejects", REJECTS),
    ],
)
def test_lost_files(store: Store, lost: tuple[str, ...], kind: str, named: str) -> None:
    for suffix in lost:
        store.delete(shard_file(FIRST, suffix))
    assert kinds(verify(store)) == [(kind, shard_file(FIRST, named))]


def test_changed_rejects(store: Store) -> None:
    store.write(shard_file(FIRST, REJECTS), b"other")
    assert kinds(verify(store)) == [("changed_rejects", shard_file(FIRST, REJECTS))]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe"])
def test_an_unreadable_manifest(store: Store, content: bytes) -> None:
    store.write(shard_file(FIRST, COMMIT), content)
    assert kinds(verify(store)) == [("unreadable_manifest", shard_file(FIRST, COMMIT))]


def test_an_edited_manifest(store: Store) -> None:
    name = shard_file(FIRST, COMMIT)
    edit(store, name, system="dcface")
    assert ("wrong_manifest", name) in kinds(verify(store))
    edit(store, name, system="studio", content_digest="f" * 16)
    assert kinds(verify(store)) == [("wrong_manifest", name)]
    edit(store, name, content_digest="0123456789abcdef", seconds={"render": 9.0})
    assert kinds(verify(store)) == [("stale_merge", MANIFEST)]


def test_foreign_and_part_files(store: Store) -> None:
    for name in ("notes.txt", "shards/i0000006-0000009-s0000-0004.tar", "shards/readme.txt"):
        store.write(name, b"")
    store.write(f"{shard_file(FIRST, TAR)}.part-far.1.00", b"")
    found = dict((name, kind) for kind, name in kinds(verify(store)))
    assert found == {
        "notes.txt": "foreign_file",
        "shards/i0000006-0000009-s0000-0004.tar": "foreign_file",
        "shards/readme.txt": "foreign_file",
        f"{shard_file(FIRST, TAR)}.part-far.1.00": "part_file",
    }


def test_the_datasets_manifest(store: Store) -> None:
    edit(store, MANIFEST, licence="MIT")
    assert kinds(verify(store)) == [("stale_merge", MANIFEST)]
    store.delete(MANIFEST)
    assert kinds(verify(store)) == [("missing_merge", MANIFEST)]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"recipe": {"kind": "generate"}}'])
def test_a_damaged_claim(store: Store, content: bytes) -> None:
    store.write("recipe.json", content)
    assert kinds(verify(store)) == [("unreadable_claim", "recipe.json")]


def sidecar(**changes: object) -> Callable[[Samples], Samples]:
    def change(samples: Samples) -> Samples:
        for _, parts in samples[3:5]:
            raw = json.loads(parts["json"]) | changes
            raw = {name: value for name, value in raw.items() if value != "removed"}
            parts["json"] = json.dumps(raw).encode()
        return samples

    return change


def member(extension: str, data: bytes) -> Callable[[Samples], Samples]:
    def change(samples: Samples) -> Samples:
        samples[3][1][extension] = data
        return samples

    return change


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (member("cls", b"0"), "wrong_label", "0000003_0003.cls is b'0', 3 is expected"),
        (member("cls", b"03"), "wrong_label", "3 is expected"),
        (member("jpg", b"GIF89a"), "wrong_image", "0000003_0003.jpg"),
        (member("png", b""), "wrong_members", "0000003_0003 has cls, jpg, json, png"),
        (member("json", b"{"), "wrong_sidecar", "not a JSON object"),
        (member("json", b"[]"), "wrong_sidecar", "not a JSON object"),
        (sidecar(content_digest="x"), "wrong_sidecar", "(and 1 more)"),
        (sidecar(identity=9), "wrong_sidecar", "identity is 9, 3 is expected"),
        (sidecar(slot=True), "wrong_sidecar", "slot is True"),
        (sidecar(system="dcface"), "wrong_sidecar", "'studio' is expected"),
        (sidecar(digitalSourceType="removed"), "wrong_sidecar", "digitalSourceType is missing"),
        (sidecar(seed="0x12"), "wrong_sidecar", "16 hex digits"),
        (sidecar(cosine=7), "wrong_sidecar", "-1 to 1 or null"),
        (sidecar(attempt=-1), "wrong_sidecar", "0 or more"),
        (lambda s: s[:-1], "wrong_count", "11 samples, the manifest says 12"),
        (
            lambda s: [*s[:-1], ("0000009_0000", s[-1][1])],
            "foreign_key",
            "0000009_0000 belongs to no slot",
        ),
        (lambda s: [("x", s[0][1])], "foreign_key", "x belongs to no slot"),
    ],
)
def test_what_a_faulty_writer_leaves(
    store: Store, change: Callable[[Samples], Samples], kind: str, words: str
) -> None:
    rewrite(store, SECOND, change)
    found = {fault.kind: fault for fault in verify(store) if fault.kind != "stale_merge"}
    assert found[kind].name == shard_file(SECOND, TAR)
    assert words in found[kind].detail


def test_a_label_of_another_shard_is_a_duplicate(store: Store) -> None:
    store.write(shard_file(SECOND, TAR), store.read(shard_file(FIRST, TAR)))
    edit(
        store,
        shard_file(SECOND, COMMIT),
        **{
            field: json.loads(store.read(shard_file(FIRST, COMMIT)))[field]
            for field in ("sha256", "bytes", "kept", "missing")
        },
    )
    assert ("foreign_key", shard_file(SECOND, TAR)) in kinds(verify(store))


def test_a_key_twice_in_one_tar(store: Store) -> None:
    path = file_of(store, shard_file(SECOND, TAR))
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        start, stop = (tar.getmembers()[n].offset for n in (3, 6))  # the second sample's three
    path.write_bytes(data[:stop] + data[start:stop] + data[stop:])
    assert ("duplicate_key", shard_file(SECOND, TAR)) in kinds(verify(store))
    path.write_bytes(data[:stop] + data[:start] + data[stop:])  # the first one again, later
    assert ("duplicate_key", shard_file(SECOND, TAR)) in kinds(verify(store))


def test_the_missing_key_is_there(store: Store) -> None:
    edit(store, shard_file(SECOND, COMMIT), kept=11, missing=["0000003_0001"])
    faults = [fault for fault in verify(store) if fault.kind == "wrong_count"]
    assert "0000003_0001 is there" in faults[0].detail


def test_the_bank_is_hashed(store: Store) -> None:
    good = {"sha256": hashlib.sha256(b"block").hexdigest()}
    store.write("bank/i0-3.parquet", b"block")
    assert kinds(verify(store)) == [("changed_bank", "bank/i0-3.parquet")]
    store.write("bank/i0-3.json", json.dumps(good).encode())
    assert verify(store) == []
    store.write("bank/i0-3.parquet", b"blocK")
    assert kinds(verify(store)) == [("changed_bank", "bank/i0-3.parquet")]
    store.delete("bank/i0-3.parquet")
    assert kinds(verify(store)) == [("changed_bank", "bank/i0-3.json")]


def test_repair_removes_what_is_faulty_and_nothing_else(
    store: Store, tmp_path: Path, made_dataset: Callable[..., Store]
) -> None:
    whole = made_dataset(tmp_path / "whole")
    path = file_of(store, shard_file(FIRST, TAR))
    path.write_bytes(path.read_bytes()[:-600])
    store.write("notes.txt", b"mine")
    part = f"{shard_file(SECOND, TAR)}.part-far.1.00"
    store.write(part, b"")
    os.utime(file_of(store, part), (0, 0))
    removed = repair(store, verify(store))
    assert removed == sorted(
        [MANIFEST, part, *(shard_file(FIRST, suffix) for suffix in (COMMIT, REJECTS, TAR))]
    )
    assert store.read("notes.txt") == b"mine"
    assert kinds(verify(store)) == [
        ("missing_shard", shard_file(FIRST, TAR)),
        ("foreign_file", "notes.txt"),
    ]
    store.delete("notes.txt")
    for suffix in (TAR, REJECTS, COMMIT):  # what generate does
        name = shard_file(FIRST, suffix)
        store.write(name, whole.read(name))
    assert kinds(verify(store)) == [("missing_merge", MANIFEST)]
