"""The papers' controls on the shipped desk models: asked for more, they give more."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from benchmarks import controls
from benchmarks.controls import CONTROLS, MEASURED, measure_controls
from factory.commands.chain import Chain
from factory.recipe import load

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "jobs/recipes/desk"


@pytest.mark.parametrize("name", CONTROLS)
def test_every_setting_is_a_recipe_of_shipped_weights_or_of_ones_it_trains(name: str) -> None:
    for setting in CONTROLS[name]:
        recipe = load(f"{RECIPES}/generate/{setting.recipe}.yaml", setting.sets)
        location = recipe.weights["denoiser"].location
        if setting.trained:
            trained = load(f"{RECIPES}/train/{setting.trained}.yaml")
            assert trained.system == recipe.system
            location = trained.weights["start"].location
        assert (ROOT / "factory" / location.removeprefix("package:")).is_file(), location


def test_fine_tunes_differ_by_their_control_alone() -> None:
    def model(name: str) -> dict[str, Any]:
        return load(f"{RECIPES}/train/{name}.yaml").model_dump(mode="json")["model"]

    for rate, name in ((0.0, "cpd0"), (0.25, "cpd25"), (0.5, "cpd50")):
        assert model(f"idiff_face_{name}") == model("idiff_face_few") | {"cpd_rate": rate}
    for grid in (1, 3, 5):
        sizes = model("dcface_few")
        sizes["conditions"]["style_grid"] = grid
        assert model(f"dcface_grid{grid}") == sizes


def test_a_trained_denoiser_is_trained_before_it_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, tuple[str, ...]]] = []

    class Told(Chain):
        def step(self, name: str, job: str, *arguments: Any, sets: Sequence[str] = ()) -> None:
            steps.append((f"{job} {Path(arguments[0]).stem}", tuple(sets)))

        def measure(self, *given: Any) -> dict[str, Any]:
            return {key: 0.0 for key in MEASURED} | {"variety": {"diversity_unmatched": 0.0}}

    monkeypatch.setattr(controls, "mean_cosine", lambda dataset: 0.0)
    chain = Told(tmp_path, "", "", (), tmp_path)
    measure_controls(chain, ["style_grid"], 4, "faces")
    assert [name for name, _ in steps] == [
        "generate studio",
        *("train_diffusion dcface_grid1", "generate dcface_full"),
        *("train_diffusion dcface_grid3", "generate dcface_full"),
        *("train_diffusion dcface_grid5", "generate dcface_full"),
    ]
    assert steps[1][1] == ("data.train=faces",)
    made = f"weights.denoiser.location={tmp_path}/weights/dcface_grid1/denoiser.safetensors"
    assert made in steps[2][1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("controls")
    words = ["-m", "benchmarks.controls", "--out", str(folder / "datasets"), "--people", "24"]
    words += ["--controls", "m", "v"]  # the others are trained first, for an hour
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
    asked = measured["m"]
    assert spearmanr(column(asked, "value"), column(asked, "cosine"))[0] >= 0.8
    bounds = column(measured["v"], "cosine")
    assert bounds == sorted(bounds)
