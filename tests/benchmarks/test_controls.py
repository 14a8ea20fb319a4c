"""The papers' controls on the shipped desk models: asked for more, they give more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from benchmarks.controls import CONTROLS
from factory.recipe import load

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", CONTROLS)
def test_every_setting_is_a_recipe_whose_weights_are_shipped(name: str) -> None:
    for setting in CONTROLS[name]:
        recipe = load(ROOT / f"jobs/recipes/desk/generate/{setting.recipe}.yaml", setting.sets)
        location = recipe.weights["denoiser"].location
        assert (ROOT / "factory" / location.removeprefix("package:")).is_file(), location


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("controls")
    words = ["-m", "benchmarks.controls", "--out", str(folder / "datasets"), "--people", "24"]
    words += ["--json", str(folder / "found.json"), "--plot", str(folder / "found.svg")]
    words += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "ID3" in (folder / "found.svg").read_text()
    return json.loads((folder / "found.json").read_text())


def column(settings: list[dict[str, float]], name: str) -> list[float]:
    return [setting[name] for setting in settings]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_controls_move_what_the_papers_say(measured: dict[str, list[dict[str, float]]]) -> None:
    dropped = measured["cpd_rate"]
    assert column(dropped, "spread") == sorted(column(dropped, "spread"))
    assert dropped[-1]["fdr"] < dropped[0]["fdr"]
    grids = measured["style_grid"]
    assert grids[-1]["diversity"] > grids[0]["diversity"]
    assert grids[-1]["genuine_mean"] < grids[0]["genuine_mean"]
    asked = measured["m"]
    assert spearmanr(column(asked, "value"), column(asked, "cosine"))[0] >= 0.8
    bounds = column(measured["v"], "cosine")
    assert bounds == sorted(bounds)
