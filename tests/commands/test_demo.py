"""The whole chain, every network trained in it, at sizes at which its figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_chain_from_scratch_in_one_piece(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    words = ["--smallest", "--from-scratch", "--out", str(out)]
    words += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    run = subprocess.run(
        [sys.executable, "jobs/demo.py", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "gap-to-real: abs" in run.stdout
    results = json.loads((out / "results.json").read_text())
    trained = {"teacher", "judge", "autoencoder", "denoiser"}
    located = {model["name"]: model["location"] for model in results["provenance"]}
    assert set(located) == trained
    assert all(location.startswith(str(out)) for location in located.values())
    for name in ("teacher", "judge"):
        assert (out / name / "recognizer.safetensors").stat().st_size > 100_000
    assert (out / "report.html").stat().st_size > 10_000
