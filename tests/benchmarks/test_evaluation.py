"""The bench of measuring at scale, at sizes that take seconds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evaluation import PARTS, Cost, extrapolated, faces
from factory.recognition.neighbours import MEMORY_BYTES

ROOT = Path(__file__).parents[2]


def test_faces_are_unit_and_people_stand_apart() -> None:
    unit, labels = faces(200)
    assert unit.dtype == np.float32 and unit.shape == (200, 512)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    cosines, same = unit @ unit.T, labels[:, None] == labels
    assert cosines[same].mean() > 0.5 > cosines[~same].max()


def test_extrapolation_follows_the_complexity() -> None:
    quadratic, constant = (name for name in PARTS if not name.startswith("uniqueness"))
    found = extrapolated(Cost(quadratic, 100_000, 3.0, 5.0, 10**9, "measured"))
    assert (found.size, found.seconds, found.extra_bytes) == (1_000_000, pytest.approx(300.0), None)
    assert extrapolated(Cost(constant, 100_000, 3.0, 5.0, 0, "measured")).seconds == 3.0


@pytest.mark.slow
def test_the_bench_prints_every_part_within_the_memory_bound(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.evaluation", "--sizes", "2000,4000"]
    ran = subprocess.run(
        [*command, "--json", str(tmp_path / "scale.json")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    print(ran.stdout)
    content = json.loads((tmp_path / "scale.json").read_text())
    assert [cost["size"] for cost in content["costs"]] == 3 * [2000, 4000, 1_000_000]
    for cost in content["costs"]:
        assert cost["seconds"] > 0
        assert cost["extra_bytes"] is None or cost["extra_bytes"] < MEMORY_BYTES
