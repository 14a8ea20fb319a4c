import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.datasets.tar import TarError, members, read_tar, write_tar

Samples = list[tuple[str, dict[str, bytes]]]

KEYS = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
MEMBERS = st.dictionaries(
    st.sampled_from(["cls", "jpg", "json", "png", "seg.png"]), st.binary(max_size=1500), min_size=1
)
SAMPLES = st.dictionaries(KEYS, MEMBERS, max_size=8).map(lambda found: sorted(found.items()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tar")


def two(count: int = 2) -> Samples:
    return [
        (f"{i:07d}_0000", {"jpg": bytes([i]) * 700, "cls": b"%d" % i, "json": b"{}"})
        for i in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(samples=SAMPLES)
def test_round_trip_by_three_readers(folder: Path, samples: Samples) -> None:
    path = folder / "round.tar"
    sha256, size = write_tar(path, samples)
    data = path.read_bytes()
    assert (sha256, size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert list(read_tar(path)) == list(read_tar(data)) == samples
    flat = {f"{key}.{ext}": value for key, parts in samples for ext, value in parts.items()}
    with tarfile.open(fileobj=io.BytesIO(data)) as other:
        found = {m.name: other.extractfile(m).read() for m in other}  # type: ignore[union-attr]
        assert all(m.isreg() for m in other.getmembers())
    assert found == flat
    with path.open("rb") as file:
        places = {m.name: slice(m.offset, m.offset + len(m.data)) for m in members(file)}
    assert {name: data[place] for name, place in places.items()} == flat


def test_equal_content_gives_equal_bytes_and_fixed_headers(folder: Path) -> None:
    one, other = folder / "one.tar", folder / "other.tar"
    backwards = [(key, dict(reversed(parts.items()))) for key, parts in two()]
    assert write_tar(one, two()) == write_tar(other, backwards)
    with tarfile.open(one) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        names = tar.getnames()
    assert names == sorted(names)
    # the bytes are part of what a dataset's manifest states: they may never change
    assert (
        write_tar(folder / "known.tar", [("a_0", {"cls": b"7"})])[0]
        == hashlib.sha256(_ustar("a_0.cls", b"7")).hexdigest()
    )


def _ustar(name: str, data: bytes) -> bytes:
    """Return a tar as the standard library writes it, without its record padding."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + data.ljust(512, b"\0") + bytes(1024)


def test_webdataset_and_gnu_tar_read_it(folder: Path) -> None:
    path = folder / "web.tar"
    write_tar(path, two(5))
    found = {sample["__key__"]: sample for sample in wds.WebDataset(str(path), shardshuffle=False)}
    assert {key: found[key]["cls"] for key, _ in two(5)} == {k: p["cls"] for k, p in two(5)}
    assert found["0000004_0000"]["jpg"] == bytes([4]) * 700
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    assert listed.stdout.split()[:2] == ["0000000_0000.cls", "0000000_0000.jpg"]


def test_it_reads_what_others_write(folder: Path) -> None:
    path = folder / "others.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, parts in two():
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mtime, info.uname = len(data), 1_700_000_000, "someone"
                tar.addfile(info, io.BytesIO(data))
    assert list(read_tar(path)) == two()


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "..", "a b", "é"])
def test_unsafe_keys_are_refused(folder: Path, key: str) -> None:
    with pytest.raises(ValueError, match="sample key"):
        write_tar(folder / "bad.tar", [(key, {"cls": b"1"})])
    assert not (folder / "bad.tar").exists()


@pytest.mark.parametrize("keys", [("b", "a"), ("a", "a")])
def test_keys_must_increase(folder: Path, keys: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="keys must increase"):
        write_tar(folder / "bad.tar", [(key, {"cls": b"1"}) for key in keys])


@pytest.mark.parametrize("extension", ["", ".jpg", "../x", "a/b"])
def test_unsafe_extensions_are_refused(folder: Path, extension: str) -> None:
    with pytest.raises(ValueError, match="extension"):
        write_tar(folder / "bad.tar", [("a", {extension: b"1"})])


def test_truncation_at_any_block_is_an_error_with_its_offset(folder: Path) -> None:
    path = folder / "whole.tar"
    _, size = write_tar(path, two())
    data = path.read_bytes()
    for stop in [*range(0, size, 512), 1, 700, size - 1]:
        with pytest.raises(TarError, match="truncated") as caught:
            list(read_tar(data[:stop]))
        assert caught.value.offset == stop


def test_a_flipped_header_byte_is_an_error(folder: Path) -> None:
    path = folder / "flip.tar"
    write_tar(path, two())
    data = path.read_bytes()
    for at in range(512):
        changed = bytearray(data)
        changed[at] ^= 0x41
        with pytest.raises(TarError):
            list(read_tar(bytes(changed)))


def test_what_is_no_plain_file_is_refused(folder: Path) -> None:
    path = folder / "links.tar"
    for name, kind in (("../../x.jpg", tarfile.REGTYPE), ("a.jpg", tarfile.SYMTYPE)):
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info)
        with pytest.raises(TarError):
            list(read_tar(path))


def test_a_member_twice_and_bytes_after_the_end_are_errors(folder: Path) -> None:
    path = folder / "twice.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.cls"))
    with pytest.raises(TarError, match="twice"):
        list(read_tar(path))
    write_tar(path, two())
    with pytest.raises(TarError, match="no end mark"):
        list(read_tar(path.read_bytes() + b"more"))


def test_members_larger_than_the_window(folder: Path) -> None:
    big = [("a", {"bin": bytes(range(256)) * 12_000}), ("b", {"cls": b"1"})]
    write_tar(folder / "big.tar", big)
    assert list(read_tar(folder / "big.tar")) == big
