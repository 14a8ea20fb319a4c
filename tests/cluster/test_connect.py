"""A Ray to work on: which one is joined, how long a start may take, where its sockets lie."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from factory.cluster import connect
from factory.recipe import FaultError, InputError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.ray


def test_a_machine_too_busy_for_ray_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def late(**given: object) -> None:  # what Ray raises after 30 s
        tried.append(given)
        time.sleep(0.3)
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setenv(connect.START_SETTING, "1")
    with pytest.raises(FaultError, match="Ray did not start within 1 s"):
        connect.connect("")
    assert len(tried) > 1
    monkeypatch.setenv(connect.START_SETTING, "soon")
    with pytest.raises(InputError, match="'soon': accepted is a whole number of seconds"):
        connect.connect("")


def test_without_an_address_only_rays_own_word_joins_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray itself would join whatever `ray start` left in its temporary folder, dead or alive."""
    asked: list[object] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: asked.append(given["address"]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connect.connect("")
    connect.connect("10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    connect.connect("")
    assert asked == ["local", "10.0.0.1:6379", None]


def test_ray_starts_below_a_tmpdir_too_long_for_a_socket(tmp_path: Path) -> None:
    """As on Slurm; what a worker says proves that it has started there."""
    long = tmp_path / ("x" * 110)
    long.mkdir()
    code = (
        "import ray\nfrom factory.cluster.connect import connect\nconnect('')\n"
        "print(ray.get(ray.remote(lambda: 'up').remote()))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "TMPDIR": str(long), "RAY_ADDRESS": "", "RAY_TMPDIR": ""},
    )  # fmt: skip
    assert ran.returncode == 0 and ran.stdout == "up\n", ran.stderr
    assert not ran.stderr


def test_a_tmpdir_too_long_for_a_socket_is_one_error_where_no_folder_has_a_short_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / f"factory-{os.getuid()}"
    foreign.symlink_to(tmp_path)  # another user's snare
    monkeypatch.setattr(connect, "SHORT", (str(tmp_path),))
    monkeypatch.setattr(connect.os, "makedirs", lambda *_, **__: None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 40)
    with pytest.raises(InputError, match=r"TMPDIR /tmp/x+: too long .* paths of \d+ bytes"):
        connect._below()
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert connect._below() is None
