"""A full disk: one clear error, nothing half written, and the same command goes on afterwards."""

import errno
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from factory.datasets.store import Store
from factory.datasets.verify import verify

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "jobs/recipes/desk/generate/studio_plain.yaml"


def test_a_device_without_space_leaves_the_old_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is made on /dev/full, where the kernel itself answers ENOSPC."""
    store = Store(tmp_path)
    store.write("shards/a.tar", b"old")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "00")
    part = f"shards/a.tar.part-{socket.gethostname()}.{os.getpid()}.00"
    (tmp_path / part).symlink_to("/dev/full")
    (tmp_path / "local").write_bytes(b"x" * 3_000_000)
    with pytest.raises(OSError) as caught:
        store.put(tmp_path / "local", "shards/a.tar")
    assert caught.value.errno == errno.ENOSPC
    assert store.read("shards/a.tar") == b"old"
    assert sorted(store.list()) == ["local", "shards/a.tar"]


@pytest.mark.slow
@pytest.mark.ray
def test_a_generation_on_a_full_disk_is_completed_on_a_larger_one(
    plain, make_alone, tars, parts, tmp_path: Path
) -> None:
    """A tmpfs in a mount namespace of its own; needs the right to mount, as root or by user."""
    disk, back = tmp_path / "disk", tmp_path / "back"
    disk.mkdir()
    sets = "identities.count=40 identities.images_each=10 shard.identities=2 image.size=64"
    recipe = plain(*sets.split())
    command = (
        f"{sys.executable} jobs/generate.py {PLAIN} --out {disk}/data "
        f"--tracking-uri sqlite:///{tmp_path}/mlflow.db "
        + " ".join(f"--set {one}" for one in sets.split())
    )
    script = f"""
        mount -t tmpfs -o size=1m tmpfs {disk}
        {command}; echo "first ended with $?"
        find {disk} -name '*.part-*'
        mount -o remount,size=100m {disk}
        {command}; echo "second ended with $?"
        cp -r {disk}/data {back}
    """
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    ran = subprocess.run(
        ["unshare", *user, "--mount", "sh", "-c", script],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "first ended with 1\nresuming: " in ran.stdout.replace("\x1b[1A\x1b[2K", ""), ran.stdout
    (error,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in error and "same command" in error
    assert "second ended with 0" in ran.stdout
    make_alone(recipe, Store(tmp_path / "whole"))
    assert tars(Store(back)) == tars(Store(tmp_path / "whole"))
    assert verify(Store(back)) == [] and parts(back) == []
