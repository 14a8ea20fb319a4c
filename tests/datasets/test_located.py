"""Files by location: as they lie on disk, behind URLs as copies that are fetched once."""

import os
import threading
import time
from pathlib import Path

import pytest

from factory.datasets import located
from factory.datasets.located import COPIES, find_file, folder_files, local_file
from factory.datasets.store import Store, cache_home
from factory.recipe import InputError

WHAT, ACCEPTED = "recipe field weights.teacher.location", "accepted is a file"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_home() / COPIES


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of a remote folder, `%s` a name in it."""
    if request.param == "memory":
        return f"memory://{tmp_path.name}-{time.time_ns()}/%s"
    return request.getfixturevalue("s3").replace("%s", f"{time.time_ns()}/%s")


def found(location: str, inside: str = "") -> Path:
    return local_file(location, WHAT, ACCEPTED, inside)


def test_on_disk_a_file_is_where_it_lies(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a" / "b.bin"
    file.parent.mkdir()
    file.write_bytes(b"1")
    for location in (f"{file}", f"file://{file}", f"adaface:{file}?channels=bgr", f"onnx:{file}"):
        assert found(location) == file
    assert found(str(file.parent), "b.bin") == file == found(f"file://{file.parent}", "b.bin")
    assert found("package:plan.py").read_text().startswith('"""The plan')
    assert not cache.exists()
    with pytest.raises(InputError, match=rf"^{WHAT}: no file {file.parent}; {ACCEPTED}$"):
        found(f"onnx:{file.parent}")
    with pytest.raises(InputError, match=rf"no file {file.parent}/c\.bin; {ACCEPTED}"):
        found(str(file.parent), "c.bin")


def test_behind_a_url_it_is_fetched_with_the_name_of_its_folder(url: str, cache: Path) -> None:
    Store(url % "").write("fr/recognizer.bin", b"one")
    for location in (url % "fr/recognizer.bin", url % "fr", url % "fr/"):
        path = found(location, "recognizer.bin")
        assert path.read_bytes() == b"one"
        assert (path.parent.name, path.name) == ("fr", "recognizer.bin")
        assert path.is_relative_to(cache)
    assert len(list(cache.rglob("recognizer.bin"))) == 1
    assert os.listdir(path.parent) == ["recognizer.bin"], "no part is left"
    behind = url % "fr/recognizer.bin"
    query = f"{behind}&channels=bgr" if "?" in behind else f"{behind}?channels=bgr"
    assert found(f"adaface:{query}") == path == found(f"onnx:{behind}")


def test_it_is_fetched_once_and_again_when_it_was_replaced(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that tells no times is asked once by a process: here the next one is played."""
    store, location, fetched = Store(url % "w"), url % "w/a.bin", []
    timed = url.startswith("s3")
    fetch = Store.fetch

    def counted(self: Store, name: str, local: Path) -> None:
        fetched.append(name)
        fetch(self, name, local)

    monkeypatch.setattr(Store, "fetch", counted)
    store.write("a.bin", b"one")
    assert [found(location).read_bytes() for _ in range(3)] == [b"one"] * 3
    assert len(fetched) == 1
    if timed:
        time.sleep(1.1)  # S3 tells seconds
    store.write("a.bin", b"two")
    if not timed:
        assert found(location).read_bytes() == b"one"
        located._fetched.clear()
    assert found(location).read_bytes() == b"two" and len(fetched) == 2
    located._fetched.clear()
    found(location)
    assert len(fetched) == (2 if timed else 3)


def test_readers_at_once_all_get_the_whole_file(s3: str) -> None:
    data, location = os.urandom(3_000_000), s3.replace("%s", "once/a.bin")
    Store(s3 % "once").write("a.bin", data)
    read: list[bytes] = []
    readers = [
        threading.Thread(target=lambda: read.append(found(location).read_bytes())) for _ in range(6)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(read) == 6 and set(read) == {data}


def test_the_files_of_a_folder_in_order(url: str, tmp_path: Path) -> None:
    store, local = Store(url % "many"), Store(tmp_path / "many")
    for name in ("b.parquet", "a.parquet", "a.json", "deeper/c.parquet"):
        store.write(name, name.encode())
        local.write(name, name.encode())
    for location in (url % "many", str(tmp_path / "many")):
        files = folder_files(location, ".parquet", WHAT)
        assert [file.read_text() for file in files] == ["a.parquet", "b.parquet"]
        assert find_file(location, WHAT) is None
    assert folder_files(url % "none", ".parquet", WHAT) == []


def test_what_is_not_there_is_one_error_without_keys(url: str, s3: str) -> None:
    with pytest.raises(InputError) as caught:
        found(url % "none.bin", "inside.bin")
    said = str(caught.value)
    assert said.startswith(f"{WHAT}: no file ") and said.endswith(ACCEPTED)
    assert "none.bin" in said and "secret" not in said and "\n" not in said
    with pytest.raises(InputError, match=f"{WHAT}: no file s3://no-such-bucket"):
        found((s3 % "x").replace("@faces/", "@no-such-bucket/"))
    with pytest.raises(InputError, match=rf"^{WHAT}: nonsense://x/y .* accepted: a path, s3://"):
        found("nonsense://x/y")
    with pytest.raises(InputError, match=rf"^{WHAT}: .* not a relative name"):
        found(url % "a/..")


def test_a_store_that_refuses_is_one_error_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, name: str) -> None:
        raise PermissionError(f"ACCESS_DENIED for s3://k:secret@faces/{name}\nagain")

    monkeypatch.setattr(Store, "version", refuse)
    with pytest.raises(InputError) as caught:
        found("s3://k:secret@faces/x.bin?region=us-east-1")
    assert str(caught.value) == (
        f"{WHAT}: s3://faces/x.bin?region=us-east-1 cannot be read (ACCESS_DENIED for "
        "s3://faces/x.bin again)"
    )
