"""A wheel alone is enough: installed into an empty environment, it runs the whole chain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pip_install_then_the_smallest_demo(tmp_path: Path) -> None:
    source, home = tmp_path / "source", tmp_path / "environment"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", source], check=True)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip = [home / "bin/pip", "install", "-qq", "-c", source / "constraints.txt"]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, source], check=True)
    subprocess.run(["rm", "-rf", source], check=True)
    given = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name in ("PYTHONPATH", "RAY_ADDRESS"):
        given.pop(name, None)
    where = tmp_path / "elsewhere"
    where.mkdir()

    def factory(*words: str) -> str:
        done = subprocess.run(
            [home / "bin/factory", *words], cwd=where, env=given, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "20: i0000000-0000010-s0000-0008" in factory("plan", "desk/generate/studio.yaml")
    assert "gap-to-real" in factory("demo", "--smallest", "--out", "demo")
    assert (where / "demo/report.html").stat().st_size > 10_000
