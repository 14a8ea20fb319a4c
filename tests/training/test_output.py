"""What an output says of what was trained there."""

from pathlib import Path
from typing import Any

import pytest
from faces import make_pool

from factory.datasets.compose import compose
from factory.datasets.manifest import MANIFEST
from factory.datasets.store import Store
from factory.recipe import FRRecipe, InputError, TrainRecipe, load, parse
from factory.training.output import licence

ROOT = Path(__file__).parents[2]


def training(data: Any, **weights: Any) -> TrainRecipe:
    path = ROOT / "jobs/recipes/desk/train/idiff_face.yaml"
    recipe = load(path).model_dump(mode="json")
    made = parse(recipe | {"data": {"train": data}, "weights": weights})
    assert isinstance(made, TrainRecipe)
    return made


def test_the_strictest_of_recipe_weights_and_datasets_counts(tmp_path: Path) -> None:
    free = make_pool(tmp_path / "free", 2, 2)
    shared = make_pool(tmp_path / "shared", 2, 2, world=1, licence="CC-BY-SA-4.0")
    teacher = tmp_path / "w600k_r50.onnx"
    teacher.write_bytes(b"weights")
    known = {"location": f"onnx:{teacher}", "licence": "MIT"}
    assert licence(training(free)) == "Apache-2.0"
    assert licence(training((free, shared))) == "CC-BY-SA-4.0"
    assert licence(training((free, shared), teacher=known)) == "non-commercial-research"
    fresh = {"location": "random-init", "licence": "MIT"}
    assert licence(training(free, teacher=fresh)) == "Apache-2.0"
    (tmp_path / "shared" / MANIFEST).unlink()  # as long as it is being made
    assert licence(training(shared)) == "CC-BY-SA-4.0"
    with pytest.raises(InputError, match="nowhere: no dataset there"):
        licence(training(str(tmp_path / "nowhere")))


def test_a_recognizer_inherits_from_a_composition(tmp_path: Path) -> None:
    shared = make_pool(tmp_path / "shared", 2, 2, licence="CC-BY-SA-4.0")
    view = {"kind": "compose", "name": "v", "seed": 1, "pools": {"a": {"url": shared}}}
    compose(parse(view), Store(tmp_path / "view"))  # type: ignore[arg-type]
    recipe = load(
        ROOT / "jobs/recipes/desk/fr/desk.yaml", [f"data.train={tmp_path / 'view'}"], kind="fr"
    )
    assert isinstance(recipe, FRRecipe) and recipe.licence != "CC-BY-SA-4.0"
    assert licence(recipe) == "CC-BY-SA-4.0"
