"""Whose folder it is: generate goes on with its own dataset and leaves other outputs alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from factory.datasets.claim import CLAIM, COMPOSITION, check_claim, claimed, read_claim, write_claim
from factory.datasets.store import Store
from factory.recipe import FRRecipe, GenerateRecipe, InputError, content_digest, load, parse
from factory.training.output import claim

ROOT = Path(__file__).parents[2]
DIGEST = "0123456789abcdef"
ACCEPTED = "accepted is an empty folder, or the dataset of the same recipe"


def studio() -> GenerateRecipe:
    recipe = load(ROOT / "jobs/recipes/desk/generate/studio.yaml")
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def test_its_own_dataset_and_an_empty_folder_are_accepted(
    made_dataset: Callable[..., Store], tmp_path: Path
) -> None:
    store = made_dataset()
    made = parse(read_claim(store)["recipe"])
    assert isinstance(made, GenerateRecipe)
    write_claim(store, made, content_digest(made, {}), ())
    assert check_claim(store, made, {}, False) == ()
    assert check_claim(Store(tmp_path / "new"), studio(), {}, False) == ()


def test_a_folder_with_anything_else_in_it_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "own")
    with store.lock("generate"):  # which lies there before the claim does
        assert check_claim(store, studio(), {}, False) == ()
    (tmp_path / "notes.txt").write_text("mine")
    said = rf"--out {tmp_path}: holds notes\.txt and no {CLAIM}; {ACCEPTED}"
    with pytest.raises(InputError, match=said):
        check_claim(Store(tmp_path), studio(), {}, False)


def test_the_output_of_a_training_is_refused(tmp_path: Path) -> None:
    fixed = ("engine.precision=float32",)
    recipe, store = load(ROOT / "jobs/recipes/desk/fr/desk.yaml", fixed), Store(tmp_path)
    assert isinstance(recipe, FRRecipe)
    claim(store, recipe)
    with pytest.raises(InputError, match=rf"--out {tmp_path}: .*of kind 'fr'.*{ACCEPTED}"):
        check_claim(store, studio(), {}, False)


@pytest.mark.parametrize("kind", ["prepare", "bank", "compose"])
def test_a_dataset_that_another_job_made_is_refused(tmp_path: Path, kind: str) -> None:
    store = Store(tmp_path)
    store.write(CLAIM, json.dumps({"recipe": {"kind": kind}, "content_digest": DIGEST}).encode())
    with pytest.raises(InputError, match=rf"--out {tmp_path}: .*of kind '{kind}'.*{ACCEPTED}"):
        check_claim(store, studio(), {}, False)
    assert claimed(store, kind) is not None


def test_a_composition_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(COMPOSITION, b"{}")
    with pytest.raises(InputError, match=rf"--out {tmp_path}: holds {COMPOSITION}.*{ACCEPTED}"):
        check_claim(store, studio(), {}, False)


def test_a_dataset_that_does_not_name_its_weights_is_not_gone_on_with(
    made_dataset: Callable[..., Store],
) -> None:
    store = made_dataset()
    held = read_claim(store)
    weights = {"teacher": {"location": "x", "sha256": "", "licence": "MIT"}}
    held["recipe"]["weights"] = weights
    store.write(CLAIM, json.dumps(held).encode())
    stated = {"teacher": weights["teacher"] | {"sha256": "a" * 64}}
    now = parse(held["recipe"] | {"weights": stated})
    assert isinstance(now, GenerateRecipe)
    with pytest.raises(InputError, match=r"weights\.teacher\.sha256 is empty there, a+ here"):
        check_claim(store, now, {}, False)


@pytest.mark.parametrize("data", [b"[1]", b"not JSON", b'{"recipe": 3}'])
def test_a_claim_that_is_none_is_one_error(tmp_path: Path, data: bytes) -> None:
    store = Store(tmp_path)
    store.write(CLAIM, data)
    with pytest.raises(InputError, match=rf"--out {tmp_path}: {CLAIM} is .*{ACCEPTED}"):
        check_claim(store, studio(), {}, False)
