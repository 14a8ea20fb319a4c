"""What an image costs is what the manifest says, beside the papers' sampler."""

from pathlib import Path

import pytest

from benchmarks import cost
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.diffusion.schedule import Process, make_scheduler
from factory.recipe import FaultError, GenerateRecipe, load

FULL = "desk/generate/idiff_face_full.yaml"


def test_the_papers_sampler_is_ddim_of_fifty_steps() -> None:
    recipe = load(FULL, cost.PAPERS)
    assert isinstance(recipe, GenerateRecipe) and recipe.sampler is not None
    assert recipe.sampler.guidance_scale == 1.0 and recipe.sampler.dtype == "float32"
    assert len(make_scheduler(Process(), recipe.sampler).timesteps) == 50


def test_the_cost_is_the_manifests(tmp_path: Path) -> None:
    found = cost.cost("desk/generate/studio.yaml", 5, (), tmp_path)
    totals = load_manifest(Store(tmp_path / "data")).totals
    assert totals.kept == 50
    seconds = totals.seconds
    assert found == pytest.approx((sum(seconds.values()) - seconds["identities"]) / 50)


def test_a_generation_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=r"image\.size: 1"):
        cost.cost("desk/generate/studio.yaml", 5, ("image.size=1",), tmp_path)
