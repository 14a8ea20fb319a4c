"""kill -9 of a worker, and of the driver: both trainings end as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from faces import make_pool
from mlflow import MlflowClient
from safetensors.torch import load_file

from factory.datasets.store import Store
from factory.recipe import FRRecipe, TrainRecipe, parse
from factory.training import checkpoint, diffusion, recognition
from factory.training.output import DONE, RECORD

ROOT = Path(__file__).parents[2]
SIZE = 32
LOOP = {
    "schedule": {"name": "cosine", "steps": 60, "batch_size": 16},
    "engine": {"name": "torch", "precision": "float32", "num_cpus": 0.5},
    "checkpoint": {"every_steps": 4},
}
KINDS = ("fr", pytest.param("train", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_pool(tmp_path_factory.mktemp("data") / "a", 12, 4, size=SIZE, licence="CC-BY-4.0")


def raw(kind: str, dataset: str) -> dict[str, Any]:
    shared = LOOP | {
        "kind": kind,
        "name": "killed",
        "seed": 5,
        "licence": "Apache-2.0",
        "image": {"size": SIZE},
        "data": {"train": dataset},
    }
    if kind == "fr":
        return shared | {
            "backbone": {
                "name": "iresnet",
                "widths": [8, 16, 24, 32],
                "depths": [1, 1, 1, 1],
                "embedding_size": 32,
                "dropout": 0.2,
            },
            "head": {"name": "adaface", "scale": 16, "margin": 0.2, "sample_rate": 0.8},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "augment": ["flip", "jitter"],
        }
    return shared | {
        "system": "autoencoder",
        "model": {
            "size": SIZE,
            "widths": [16, 16],
            "encoder_blocks": [1, 1],
            "decoder_blocks": [1, 1],
        },
        "optimizer": {"name": "adamw", "lr": 0.003},
        "ema": 0.9,
    }


def run(kind: str, dataset: str, out: Path) -> None:
    recipe: Any = parse(raw(kind, dataset))
    (recognition.run if kind == "fr" else diffusion.run)(recipe, Store(out))


def outcome(out: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    curve = json.loads((out / RECORD).read_text())["curve"]
    (weights,) = out.glob("*.safetensors")
    return [row["loss"] for row in curve], load_file(weights)


def same(one: Path, other: Path) -> bool:
    (losses, weights), (theirs, others) = outcome(one), outcome(other)
    assert len(losses) == 60
    return losses == theirs and all(torch.equal(weights[n], others[n]) for n in weights | others)


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Yield (pid, command) of all processes below one, as /proc has them."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        below.setdefault(parent, []).append(int(path.parent.name))
    waiting = below.get(pid, [])
    while waiting:
        found = waiting.pop()
        waiting += below.get(found, [])
        try:
            command = Path(f"/proc/{found}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield found, command.replace(b"\0", b" ").decode()


class Killer(threading.Thread):
    """Kills a process once the output has a checkpoint, and notes which was the newest then."""

    def __init__(self, out: Path, find: Callable[[], list[int]]) -> None:
        super().__init__(daemon=True)
        self.store, self.find = Store(out), find
        self.at: int | None = None

    def run(self) -> None:
        while self.at is None and not self.store.exists(RECORD):
            step = checkpoint.latest(self.store) or 0
            if step >= 8:
                for pid in self.find():
                    os.kill(pid, signal.SIGKILL)
                    self.at = step
            time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_worker_changes_nothing(
    kind: str, dataset: str, tmp_path: Path, ray_cluster: None
) -> None:
    def workers() -> list[int]:
        return [pid for pid, name in descendants(os.getpid()) if "TrainWorker" in name]

    recipe, out = parse(raw(kind, dataset)), tmp_path / "killed"
    killer = Killer(out, workers)
    killer.start()
    rows: list[dict[str, float]] = []
    if isinstance(recipe, FRRecipe):
        recognition.train(recipe, str(out), rows.append)
    else:
        assert isinstance(recipe, TrainRecipe)
        diffusion.train(recipe, str(out), Deaf(rows))  # type: ignore[arg-type]
    assert killer.at is not None and killer.at < 60
    run(kind, dataset, tmp_path / "whole")
    assert same(out, tmp_path / "whole")
    assert [row["step"] for row in rows] == list(range(1, 61))
    if isinstance(recipe, FRRecipe):  # what is finished is not trained again
        record = json.loads((out / RECORD).read_text())
        assert recognition.train(recipe, str(out), rows.append) == record and len(rows) == 60


class Deaf:
    """Takes the place of an MLflow run."""

    def __init__(self, rows: list[dict[str, float]]) -> None:
        self.rows = rows

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append(values)

    def artifact(self, path: Path, folder: str) -> None:
        assert path.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_driver_is_continued_by_the_same_command(
    kind: str, dataset: str, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "killed"
    recipe.write_text(yaml.safe_dump(raw(kind, dataset)))
    job = "train_recognizer" if kind == "fr" else "train_diffusion"
    command = [
        *(sys.executable, f"jobs/{job}.py", str(recipe), "--out", str(out)),
        *("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"),
    ]
    if kind == "fr":
        command += ["--onnx", str(tmp_path / "made.onnx")]
    driver = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    killer = Killer(out, lambda: [driver.pid])
    killer.start()
    driver.wait()
    killer.join()
    assert killer.at is not None and driver.returncode == -signal.SIGKILL
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    os.killpg(driver.pid, signal.SIGKILL)  # Ray's agents outlive a killed driver
    run(kind, dataset, tmp_path / "whole")
    assert same(out, tmp_path / "whole")
    kept = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    version = kept.get_model_version("killed", "1")
    assert version.tags["licence"] == "CC-BY-4.0" and version.tags["data"] == dataset
    assert (kind == "fr") == (tmp_path / "made.onnx").is_file()

    def versions() -> int:
        return len(kept.search_model_versions("name='killed'"))

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "finished already" in done.stdout and versions() == 1
    (out / DONE).unlink()  # as if killed between the record and the registry
    late = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert late.returncode == 0 and versions() == 2 and (out / DONE).is_file()
