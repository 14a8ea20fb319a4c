import errno
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factory.datasets import store as module
from factory.datasets.manifest import committed, load_manifest
from factory.datasets.store import LOCK, Store, below, parted, write_file
from factory.datasets.verify import verify
from factory.recipe import FaultError, InputError, public

KEY, SECRET = "a-key", "a-secret"  # of the fixture `s3`


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "data")
    if request.param == "memory":
        return Store(f"memory://{tmp_path.name}-{time.time_ns()}")
    return Store(request.getfixturevalue("s3") % f"set-{time.time_ns()}")


def test_files_there_and_back(store: Store, tmp_path: Path) -> None:
    store.write("shards/a.bin", b"one")
    store.write("shards/a.bin", b"two")
    (tmp_path / "local.bin").write_bytes(b"x" * 3_000_000)
    store.put(tmp_path / "local.bin", "b.bin")
    assert (tmp_path / "local.bin").exists()
    assert store.read("shards/a.bin") == b"two"
    assert (store.exists("b.bin"), store.exists("shards"), store.exists("c")) == (
        True,
        False,
        False,
    )
    assert store.size("b.bin") == 3_000_000
    assert sorted(store.list()) == ["b.bin", "shards/a.bin"]
    assert list(store.list("shards")) == ["shards/a.bin"]
    assert list(store.list("nowhere")) == []
    assert store.sizes() == {"b.bin": 3_000_000, "shards/a.bin": 3}
    assert (store.sizes("shards"), store.sizes("nowhere")) == ({"shards/a.bin": 3}, {})
    version = store.version("b.bin")
    assert version is not None and version[0] == 3_000_000
    assert store.version("c") is None and store.version("shards") is None
    store.fetch("b.bin", tmp_path / "back" / "b.bin")
    assert (tmp_path / "back" / "b.bin").read_bytes() == b"x" * 3_000_000
    assert os.listdir(tmp_path / "back") == ["b.bin"]
    with store.local("shards/a.bin") as path:
        assert path.read_bytes() == b"two"
    with store.open_input("b.bin") as file:
        assert file.read(10) == b"x" * 10
    with store.open_random("shards/a.bin") as file:
        file.seek(2)
        assert file.read() == b"o" and file.seek(0) == 0 and file.read(2) == b"tw"
    store.delete("b.bin")
    store.delete("b.bin")
    assert not store.exists("b.bin")
    for read in (store.read, store.size):
        with pytest.raises(FileNotFoundError):
            read("b.bin")


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "a//b", "", ".", "a\\b"])
def test_unsafe_names_are_refused(store: Store, name: str) -> None:
    for action in (store.read, store.exists, store.delete, lambda n: store.write(n, b"")):
        with pytest.raises(ValueError, match="not a relative name"):
            action(name)


def test_one_writer_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.01)
    with store.lock("generate") as lock:
        with pytest.raises(InputError) as caught, store.lock("generate"):
            pass
        for word in (socket.gethostname(), str(os.getpid()), "s ago", "delete"):
            assert word in str(caught.value)
        assert SECRET not in str(caught.value)
        lock.check()
    assert not store.exists(LOCK)
    with store.lock("generate"):
        assert store.exists(LOCK)


def test_a_dataset_lives_in_every_kind_of_store(made_dataset, store: Store) -> None:
    made = made_dataset(store._address)
    assert len(committed(made)) == 2
    assert load_manifest(made).totals.kept == 23
    assert verify(made) == []


def test_credentials_are_never_shown(s3: str) -> None:
    store = Store(s3 % "x")
    assert KEY not in repr(store) + store.url
    assert SECRET not in repr(store) + store.url
    assert "faces/x" in store.url
    assert public("az://c/x?sig=abc&a=1&Secret_Key=q") == "az://c/x?sig=...&a=1&Secret_Key=..."
    again = pickle.loads(pickle.dumps(store))
    again.write("t", b"1")
    assert store.read("t") == b"1"


@pytest.mark.parametrize("url", ["", "nonsense://x", "s3://"])
def test_an_address_of_no_kind(url: str) -> None:
    with pytest.raises(InputError, match="store"):
        Store(url)


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be a folder"), Store(tmp_path / "file").lock("x"):
        pass


def test_a_disk_that_takes_no_folder_is_no_wrong_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left"), Store(tmp_path / "new").lock("x"):
        pass


def test_actors_in_another_folder_find_a_relative_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("data")
    sent = pickle.dumps(store)
    monkeypatch.chdir("/")
    assert pickle.loads(sent).root == tmp_path / "data"
    assert store.url == "data"


def test_a_write_that_fails_leaves_the_old_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write("a", b"old")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        store.write("a", b"new")
    assert store.read("a") == b"old"
    assert list(store.list()) == ["a"]


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_sweep_removes_the_parts_of_the_dead_only(tmp_path: Path) -> None:
    store, host = Store(tmp_path), socket.gethostname()
    dead, alive = f"a.tar.part-{host}.{dead_pid()}.00", f"a.tar.part-{host}.{os.getpid()}.00"
    old, fresh = "shards/b.part-far.example.1.00", "shards/c.part-far.example.1.00"
    with subprocess.Popen(["true"]) as unburied:  # ended, but nobody has asked for its code
        os.waitid(os.P_PID, unburied.pid, os.WEXITED | os.WNOWAIT)
        killed = f"a.tar.part-{host}.{unburied.pid}.00"
        for name in (dead, alive, old, fresh, killed, "shards/a.tar"):
            store.write(name, b"")
        os.utime(tmp_path / old, (0, 0))
        assert store.sweep() == tuple(sorted((dead, old, killed)))
    assert sorted(store.list()) == sorted((alive, fresh, "shards/a.tar"))


@pytest.mark.parametrize(
    ("holder", "why"),
    [
        ({"owner": "generate", "host": socket.gethostname(), "pid": None}, "its process is gone"),
        ({"owner": "generate", "host": "far", "pid": 1, "time": 0.0}, "did not move"),
    ],
)
def test_a_dead_holders_lock_is_taken_over(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    holder: dict,
    why: str,
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.01)
    store = Store(tmp_path)
    holder = {"time": time.time(), "token": "x"} | holder
    holder["pid"] = holder["pid"] or dead_pid()
    store.write(LOCK, json.dumps(holder).encode())
    with store.lock("generate"):
        assert json.loads(store.read(LOCK))["pid"] == os.getpid()
    assert why in capsys.readouterr().out


def test_a_folder_that_was_made_for_the_lock_goes_with_it_unless_something_is_in_it(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "new")
    with pytest.raises(ZeroDivisionError), store.lock("generate"):
        assert (tmp_path / "new" / LOCK).exists()
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    with store.lock("generate"):
        store.write("a", b"")
    assert list(store.list()) == ["a"]
    (tmp_path / "mine").mkdir()
    with Store(tmp_path / "mine").lock("generate"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_link_is_written_through_and_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    for name, data in (("link", b"1"), ("file", b"2"), ("link", b"3")):
        write_file(tmp_path / name, data)
        assert (tmp_path / "file").read_bytes() == data
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_living_holder_elsewhere_is_respected(tmp_path: Path) -> None:
    holder = {"owner": "generate", "host": "far", "pid": 1, "time": time.time(), "token": "x"}
    Store(tmp_path).write(LOCK, json.dumps(holder).encode())
    with pytest.raises(InputError, match="host far, process 1"), Store(tmp_path).lock("generate"):
        pass


def test_a_lock_is_renewed_and_its_loss_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    store = Store(tmp_path)
    with store.lock("generate") as lock:
        before = json.loads(store.read(LOCK))["time"]
        while json.loads(store.read(LOCK))["time"] == before:
            time.sleep(0.01)
        assert json.loads(store.read(LOCK))["time"] > before
        store.write(LOCK, b'{"token": "another"}')
        lock._thread.join(5)
        with pytest.raises(FaultError, match="another writer took its lock"):
            lock.check()
    assert store.read(LOCK) == b'{"token": "another"}'


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("s3://b/p?endpoint_override=h:9000", "s3://b/p/ray/1?endpoint_override=h:9000"),
        (
            "s3://b/p/?endpoint_override=http://h:9000",
            "s3://b/p/ray/1?endpoint_override=http://h:9000",
        ),
        ("gs://b", "gs://b/ray/1"),
        ("runs/a/", "runs/a/ray/1"),
        ("runs/what?", "runs/what?/ray/1"),
        ("file:///runs/what?", "file:///runs/what?/ray/1"),
    ],
)
def test_a_name_below_an_address_stands_before_its_query(url: str, inside: str) -> None:
    assert below(url, "ray/1") == inside
    assert "".join(parted(inside)) == inside
    assert parted(url)[0] + "/ray/1" == parted(inside)[0]


def test_what_lies_below_is_what_the_store_finds(s3: str, tmp_path: Path) -> None:
    for url in (s3 % "below", str(tmp_path)):
        Store(url).write("inner/a.bin", b"1")
        assert Store(below(url, "inner")).read("a.bin") == b"1"
