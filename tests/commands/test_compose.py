"""The jobs compose and make_pairs as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest
import ready
import yaml
from faces import make_pool

from factory.evaluation.verification import read_bin

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    pools = {
        "a": {"url": make_pool(tmp_path / "a", 40, 3, world=1), "images_each": 2, "weight": 2},
        "b": {"url": make_pool(tmp_path / "b", 5, 4, world=2)},
    }
    made = {"kind": "compose", "name": "view", "seed": 1, "images": 30, "pools": pools}
    (tmp_path / "view.yaml").write_text(yaml.safe_dump(made))
    return tmp_path / "view.yaml"


def test_composed_materialised_verified_and_pairs_held_out(recipe: Path, tmp_path: Path) -> None:
    compose = ("jobs/compose.py", recipe, "--out", tmp_path / "view")
    tracking = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    done = ready.run(*compose, "--materialise", tmp_path / "made", *tracking)
    assert done.returncode == 0, done.stderr
    assert "a         10 identities, 20 images x 1 of 40, 120" in done.stdout
    assert "together  15 identities, 30 images, 30 an epoch" in done.stdout
    assert not list(tmp_path.rglob("lock"))
    done = ready.run("jobs/verify.py", tmp_path / "made")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole: 30 of 30 planned images" in done.stdout
    done = ready.run(*compose, "--set", "seed=2")
    assert done.returncode == 2 and "composition of another recipe" in done.stderr
    to = tmp_path / "held" / "out.bin"
    pairs = ("jobs/make_pairs.py", tmp_path / "a", "--to", to, "--pairs", "20")
    done = ready.run(*pairs, "--without", tmp_path / "view")
    assert done.returncode == 2 and "held is no folder that can be written to" in done.stderr
    to.parent.mkdir()
    done = ready.run(*pairs, "--without", tmp_path / "view")
    assert done.returncode == 0, done.stderr
    assert "20 pairs of" in done.stdout
    assert len(read_bin(to).images) == 40
    done = ready.run(*pairs, "--skip", "39")
    assert done.returncode == 2 and "error: pairs: a fold of" in done.stderr


def test_composing_and_pairing_load_neither_torch_nor_ray_to_start() -> None:
    for job in (["jobs/compose.py", "nowhere.yaml", "--out", "x"], ["jobs/make_pairs.py", "x"]):
        done = run("-X", "importtime", *job, *(["--to", "x.bin"] if "pairs" in job[0] else []))
        assert done.returncode == 2
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "factory.recipe" in loaded
        assert not {"torch", "ray", "mlflow", "diffusers"} & loaded
