"""A training over two nodes loses each of them once: it waits, shrinks and grows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from faces import make_pool

from factory.datasets.store import Store

HERE = Path(__file__).parent
ENGINE = {"name": "deepspeed", "workers": 2, "threads": 1, "precision": "float32"}
SHARDS = 4


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_goes_on_with_the_nodes_that_there_are(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The dataset lies on S3, and each node reads it itself; `trained.py` says what is done."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    data = (s3 % "nodes").replace("a-key:a-secret@", "")
    made = Path(make_pool(tmp_path / "made", 3 * SHARDS, 4, size=tiny.SIZE, per=3))
    for path in made.rglob("*.*"):
        Store(data).put(path, path.relative_to(made).as_posix())
    recipe = tiny.training(
        *("idiff_face", tiny.save_frozen(tmp_path), data, tiny.IDIFF),
        engine=ENGINE,
        schedule={"name": "constant", "steps": 24, "batch_size": 8},
        checkpoint={"every_steps": 3},
        precompute={"sidecar": str(tmp_path / "sidecar"), "actors": 2},
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    ran = subprocess.run(
        [sys.executable, str(HERE / "trained.py"), str(tmp_path)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    codes = [int(code) for code in re.findall(r"exit code (\d+) of", ran.stdout)]
    assert codes == [0, 130, 0, 0], ran.stdout

    lines = ran.stdout.splitlines()
    losses = [line for line in lines if re.match(r"worker.* of 2 (lost|failed: .*);", line)]
    assert len(losses) == 2 and all(line.endswith("is the newest checkpoint") for line in losses)
    waits = [line for line in lines if line.startswith("waiting for 2 CPU; the cluster has ")]
    assert waits and all(line.endswith("goes on with fewer engine.workers, too") for line in waits)
    assert "stopped: step " in ran.stdout

    whole, lost = (
        json.loads((tmp_path / out / "training.json").read_text()) for out in ("whole", "lost")
    )
    assert whole["steps"] == lost["steps"] == 24
    pairs = [
        (one["loss"], other["loss"])
        for one, other in zip(whole["curve"], lost["curve"], strict=True)
    ]
    assert pairs[:9] == [(one, one) for one, _ in pairs[:9]]  # two workers all the time
    for one, other in pairs:
        assert other == pytest.approx(one, rel=1e-5)
    for node in ("a", "b"):
        assert len(list((tmp_path / node).rglob("shards/*.tar"))) == SHARDS
    assert not list((tmp_path / "driver").rglob("*.tar"))
    assert list((tmp_path / "sidecar").rglob("*.npy"))
