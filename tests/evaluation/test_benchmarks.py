"""Benchmarks that were not shipped are made again, once, and are those that were."""

import hashlib
import json
from pathlib import Path

import pytest

from factory.cluster.ranges import over_tasks
from factory.evaluation import benchmarks
from factory.evaluation.benchmarks import (
    MANIFEST,
    SHIPPED,
    benchmark_folder,
    finished,
    write_benchmarks,
)
from factory.evaluation.verification import bin_files, read_bin
from factory.recipe import InputError

SETTINGS = {"pairs": 20, "size": 32, "seed": 1}


@pytest.fixture
def missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose benchmarks were left out; yields the folder of what was shipped."""
    whole = tmp_path / "whole"
    write_benchmarks(whole, **SETTINGS, say=lambda line: None)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / MANIFEST).write_text((whole / MANIFEST).read_text())
    monkeypatch.setattr(benchmarks, "local_path", lambda location: bare)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return whole


def test_what_was_left_out_is_made_once_and_equal(missing: Path) -> None:
    said: list[str] = []
    folder = benchmark_folder(SHIPPED, said.append)
    assert said[0].startswith(f"{SHIPPED} was not uploaded") and len(said) == 6
    stated = json.loads((missing / MANIFEST).read_text())["sha256"]
    made = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.bin")
    }
    assert made == stated and len(made) == 5
    assert all(len(read_bin(file).same) == 20 for file in bin_files(folder).values())
    said.clear()
    assert benchmark_folder(SHIPPED, said.append) == folder and said == []


def test_half_of_them_is_never_taken(missing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(benchmarks, "versions", killed)
        with pytest.raises(KeyboardInterrupt):
            benchmark_folder(SHIPPED, lambda line: None)
    assert len(bin_files(benchmark_folder(SHIPPED, lambda line: None))) == 5


def test_other_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    assert benchmark_folder(str(tmp_path), lambda line: None) == tmp_path


def test_only_whole_benchmarks_of_the_same_settings_are_finished(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert not finished(folder, **SETTINGS)
    write_benchmarks(folder, **SETTINGS, say=lambda line: None)
    assert finished(folder, **SETTINGS)
    with pytest.raises(InputError, match="pairs is 20 there, 40 here"):
        finished(folder, **{**SETTINGS, "pairs": 40})
    damaged = folder / "frontal.bin"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    assert not finished(folder, **SETTINGS)
    damaged.unlink()
    assert not finished(folder, **SETTINGS)
    damaged.write_bytes(content)
    (folder / MANIFEST).unlink()
    assert not finished(folder, **SETTINGS)


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_is_no_folder_of_benchmarks(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file.* cannot be a folder: "):
        write_benchmarks(tmp_path / "file" / below, **SETTINGS, say=lambda line: None)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.ray
def test_tasks_write_the_files_of_one_process(tmp_path: Path, ray_cluster) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    write_benchmarks(one, **SETTINGS, say=lambda line: None)
    write_benchmarks(many, **SETTINGS, say=lambda line: None, spread=over_tasks)
    files = sorted(file.name for file in one.iterdir())
    assert files == sorted(file.name for file in many.iterdir()) and len(files) == 7
    assert all((one / file).read_bytes() == (many / file).read_bytes() for file in files)
