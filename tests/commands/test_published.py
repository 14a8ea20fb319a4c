"""A published recipe with a checkpoint as its authors store it, from the command line to a card."""

import json
import re
import signal
from pathlib import Path

import pytest
import ready
import simplejpeg
import stopping
import torch
from filled import dcface_layout, filled, picture

from factory.datasets.images import contents_digest
from factory.datasets.provenance import sha256_file
from factory.datasets.store import Store

RECIPE = "jobs/recipes/published/dcface_3x3.yaml"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1400000000\n"
PAGE = b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title></html>"


def photographs(folder: Path, name: str, people: int) -> str:
    """Make a dataset of a picture each, as prepare does from a folder; return its address."""
    for number in range(people):
        (folder / name / f"person{number}").mkdir(parents=True)
        image = simplejpeg.encode_jpeg(picture(f"{name}{number}", 112), 95, colorspace="RGB")
        (folder / name / f"person{number}" / "0.jpg").write_bytes(image)
    out = folder / f"{name}-prepared"
    done = ready.run("jobs/prepare.py", folder / name, "--out", out, "--licence", "CC0-1.0")
    assert done.returncode == 0, done.stderr
    return str(out)


@pytest.mark.ray
@pytest.mark.slow
def test_a_published_recipe_is_killed_and_resumed(tmp_path: Path) -> None:
    checkpoint = tmp_path / "dcface_3x3.ckpt"
    state = {"state_dict": filled(dcface_layout(3)), "epoch": 3, "callbacks": {Path: {}}}
    torch.save(state, checkpoint)
    del state
    words = ["jobs/generate.py", RECIPE, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    sets = {
        "weights.denoiser.location": f"dcface:{checkpoint}",
        "identities.count": 4,
        "identities.images_each": 1,
        "shard.identities": 1,
        "sampler.steps": 2,
        "workers.num_gpus": 0,
        "workers.num_cpus": 1,
        "workers.committers": 0,
        "image.format": "png",
    }
    for option, name in (("options.bank", "who"), ("options.styles.dataset", "how")):
        url = photographs(tmp_path, name, 4)
        sets |= {f"{option}.url": url, f"{option}.digest": contents_digest(Store(url))}
    for field, value in sets.items():
        words += ["--set", f"{field}={value}"]

    out = tmp_path / "made"
    (tmp_path / "stopped").mkdir()
    stopped = stopping.stop(
        [*words, "--out", out],
        tmp_path / "stopped",
        signal.SIGTERM,
        lambda said: "shards 1/4" in said,
    )
    assert stopped.code == 143, stopped.err
    done = ready.run(*words, "--out", out)
    assert done.returncode == 0, done.stderr
    assert re.search("resuming: [123] of 4 shards are committed", done.stdout)
    assert len(list(out.glob("shards/*.tar"))) == 4
    done = ready.run("jobs/verify.py", out)
    assert done.returncode == 0, done.stdout + done.stderr

    manifest = json.loads((out / "manifest.json").read_text())
    (model,) = manifest["models"]
    assert model == {
        "name": "denoiser",
        "location": f"dcface:{checkpoint}",
        "sha256": sha256_file(checkpoint),
        "licence": "unknown",
    }
    assert manifest["licence"] == "unknown" and manifest["totals"]["kept"] == 4
    card = tmp_path / "card"
    done = ready.run("jobs/export.py", out, "--format", "imagefolder", "--to", card)
    assert done.returncode == 0, done.stderr
    told = (card / "README.md").read_text()
    assert f"dcface:{checkpoint}" in told and sha256_file(checkpoint) in told
    assert "unknown" in told


def cut(path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(POINTER), "is a Git-LFS pointer"),
        (lambda path: path.write_bytes(PAGE), "is a web page"),
        (cut, "is cut off"),
        (lambda path: torch.save({"w": torch.ones(2)}, path), "lacks input_blocks.0.0.weight"),
    ],
)
def test_what_is_no_checkpoint_is_one_error_and_nothing_is_written(
    write: object, reason: str, tmp_path: Path
) -> None:
    assert callable(write)
    write(tmp_path / "dcface_3x3.ckpt")
    out = tmp_path / "out"
    location = f"weights.denoiser.location=dcface:{tmp_path / 'dcface_3x3.ckpt'}"
    done = ready.run("jobs/generate.py", RECIPE, "--out", out, "--set", location)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert reason in line and "accepted is dcface:FILE" in line
    assert "recipe field weights.denoiser.location" in line and not out.exists()
