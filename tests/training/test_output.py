"""What an output says of what was trained there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from faces import make_pool

from factory.datasets.compose import compose
from factory.datasets.manifest import MANIFEST
from factory.datasets.store import Store
from factory.recipe import FRRecipe, InputError, TrainRecipe, load, parse
from factory.training.output import (
    RECORD,
    check_data,
    check_data_read,
    check_output,
    claim,
    data_read,
    licence,
)

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


def recognizer(data: str, *sets: str) -> FRRecipe:
    fixed = (f"data.train={data}", "engine.precision=float32", *sets)
    recipe = load(ROOT / "jobs/recipes/desk/fr/desk.yaml", fixed, kind="fr")
    assert isinstance(recipe, FRRecipe)
    return recipe


def remade(data: str, *size: int, world: int = 0) -> None:
    """Make the dataset anew at its place."""
    shutil.rmtree(data)
    make_pool(Path(data), *size, world=world)


def finished(out: Path, recipe: FRRecipe, stated: dict[str, Any]) -> Store:
    """Return an output with the claim and record of a finished training."""
    store = Store(out)
    claim(store, recipe)
    store.write(RECORD, json.dumps(stated).encode())
    return store


@pytest.mark.parametrize("whole", [True, False])
def test_a_dataset_that_changed_since_its_training_is_named(tmp_path: Path, whole: bool) -> None:
    data = make_pool(tmp_path / "d", 3, 4)
    part = () if whole else ("data.identities=2", "data.images_each=3")
    asked = recognizer(data, *part)
    had = (12, 3) if whole else (6, 2)
    store = finished(tmp_path / "out", asked, data_read(asked, *had))
    check_output(store, asked)
    older = finished(tmp_path / "older", asked, {"images": had[0], "identities": had[1]})
    check_output(older, asked)  # from before digests were stated
    remade(data, 3, 4, world=1)
    check_output(older, asked)  # whose counts are all that it knows
    with pytest.raises(InputError) as caught:
        check_output(store, asked)
    was = f"trained on {had[0]} images of {had[1]} identities (content digest {0:016x})"
    now = f"gives {had[0]} images of {had[1]} identities (content digest {1:016x}) now"
    for words in (
        f"--out {store.url}: ",
        was,
        "the dataset has changed since",
        now,
        "another --out",
    ):
        assert words in str(caught.value)
    remade(data, 5, 4)  # as --extend leaves it
    for one in (store, older):
        if whole:
            with pytest.raises(InputError, match=r"12 images of 3 .*gives 20 images of 5"):
                check_output(one, asked)
        else:
            check_output(one, asked)  # its part is what it was
    remade(data, 2, 2)
    for one in (store, older):
        with pytest.raises(InputError, match=r"gives 4 images of 2 identities"):
            check_output(one, asked)
    shutil.rmtree(data)
    check_output(store, asked)  # nothing is there that differs


def test_a_composition_that_changed_since_its_training_is_named(tmp_path: Path) -> None:
    pool, view = make_pool(tmp_path / "pool", 3, 4), str(tmp_path / "view")

    def composed(**pools: Any) -> None:
        made = {"kind": "compose", "name": "v", "seed": 1, "pools": {"a": {"url": pool, **pools}}}
        compose(parse(made), Store(view))  # type: ignore[arg-type]

    composed(repeat=2)
    asked = recognizer(view)
    store = finished(tmp_path / "out", asked, data_read(asked, 24, 3))
    check_output(store, asked)
    shutil.rmtree(view)
    composed(identities=2)
    with pytest.raises(InputError, match=r"24 images of 3 .* gives 8 images of 2 identities"):
        check_output(store, asked)


def test_what_a_training_did_not_state_is_not_compared(tmp_path: Path) -> None:
    now = {"content_digests": ["a"], "images": 4, "identities": 2}
    check_data_read(Store(tmp_path), {}, now)  # a checkpoint from before
    check_data_read(Store(tmp_path), now, now)
    asked = training(make_pool(tmp_path / "d", 2, 2))
    store = Store(tmp_path / "out")
    store.write(RECORD, json.dumps({"steps": 5}).encode())  # train_diffusion's from before
    store.write("recipe.json", json.dumps(asked.model_dump(mode="json")).encode())
    check_output(store, asked)


def test_two_datasets_of_the_same_people_are_refused_and_others_are_not(tmp_path: Path) -> None:
    one = make_pool(tmp_path / "one", 2, 2, world=1, source="gallery")
    two = make_pool(tmp_path / "two", 2, 2, world=2, source="gallery")
    other = make_pool(tmp_path / "other", 2, 2, world=3, source="train")
    check_data(training([one, other]))
    check_data(training(two))
    with pytest.raises(InputError, match=r"one and .*two draw the same people \(studio gallery\)"):
        check_data(training([one, other, two]))
    raw = {"kind": "compose", "name": "view", "seed": 1, "pools": {"a": {"url": one}}}
    compose(parse(raw), Store(tmp_path / "view"))  # type: ignore[arg-type]
    view = str(tmp_path / "view")
    check_data(training([view, other]))
    Store(two).delete("manifest.json")  # as while it is being made
    with pytest.raises(InputError, match=r"view and .*two draw the same people \(studio gallery\)"):
        check_data(training([view, two]))
