"""`factory verify` as a user runs it."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import ready

from factory.commands import verify as command
from factory.datasets.manifest import TAR, shard_file
from factory.datasets.store import LOCK, Store
from factory.datasets.verify import Fault, verify
from factory.recipe import InputError

FIRST = "i0000000-0000003-s0000-0004"


def test_verify_names_a_flipped_byte_and_repairs(made_dataset: Callable[..., Store]) -> None:
    store = made_dataset()
    assert store.root is not None
    done = ready.run("jobs/verify.py", store.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole: 23 of 24 planned images" in done.stdout

    name = shard_file(FIRST, TAR)
    data = bytearray((store.root / name).read_bytes())
    data[700] ^= 1
    (store.root / name).write_bytes(data)
    done = ready.run("jobs/verify.py", store.root)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{name}: changed_tar: sha256 is ")
    assert "exit code 1" in done.stderr.splitlines()[-1]
    assert store.exists(name)

    done = ready.run("jobs/verify.py", store.root, "--repair")
    assert done.returncode == 1
    assert f"removed {name}" in done.stdout
    assert not store.exists(name)
    assert not store.exists("lock")


def test_repair_looks_only_once_nobody_else_writes(
    made_dataset: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard without a manifest may be one that generate commits right now."""
    store, held = made_dataset(), []

    def looked(store: Store, **_: object) -> list[Fault]:
        held.append(store.exists(LOCK))
        return verify(store)

    monkeypatch.setattr(command, "verify", looked)
    for repair in (False, True):
        assert command.job(argparse.Namespace(url=str(store.root), repair=repair, tasks=0)) == 0
    assert held == [False, True] and not store.exists(LOCK)


def test_verify_without_a_dataset_is_exit_code_2(tmp_path: Path) -> None:
    done = ready.run("jobs/verify.py", tmp_path, "--repair")
    assert done.returncode == 2
    assert "no dataset there" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tasks_are_none_or_more(made_dataset: Callable[..., Store]) -> None:
    with pytest.raises(InputError, match="--tasks -1: accepted is 0 or more"):
        command.job(argparse.Namespace(url=str(made_dataset().root), repair=False, tasks=-1))
