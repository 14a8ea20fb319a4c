"""Every recipe in the repository loads, and its system accepts it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from factory import plan, recipe, systems
from factory.datasets import catalog
from factory.datasets.provenance import models
from factory.recipe import BankRecipe, ComposeRecipe, GenerateRecipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "jobs" / "recipes").rglob("*.yaml"))
KINDS = {"bank", "compose", "generate", "train", "fr"}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT / "jobs" / "recipes"))


def test_there_are_recipes_of_each_kind() -> None:
    assert {path.parent.name for path in RECIPES} == KINDS | {"published"}


@pytest.mark.parametrize("path", RECIPES, ids=shown)
def test_it_loads_and_stands_in_its_place(path: Path) -> None:
    loaded = recipe.load(path)
    scale, *kind, _ = path.relative_to(ROOT / "jobs" / "recipes").parts
    assert scale in ("desk", "paper", "published")
    assert [loaded.kind] == (kind or ["generate"])
    again = recipe.parse(loaded.model_dump(mode="json"))
    assert recipe.digest(again) == recipe.digest(loaded)


@pytest.mark.parametrize(
    "path",
    [path for path in RECIPES if path.parent.name in ("generate", "published")],
    ids=shown,
)
def test_its_system_accepts_it_and_it_can_be_planned(path: Path) -> None:
    loaded = recipe.load(path, kind="generate")
    assert isinstance(loaded, GenerateRecipe)
    systems.create(loaded)
    planned = list(plan.shards(loaded))
    assert sum(shard.samples for shard in planned) == plan.totals(loaded).images
    assert len(planned) == plan.totals(loaded).shards


@pytest.mark.parametrize("path", RECIPES, ids=shown)
def test_shipped_weights_exist_and_hash_as_it_says(path: Path) -> None:
    import hashlib

    weights = recipe.load(path).model_dump(mode="json").get("weights", {})
    for name, part in weights.items():
        if not isinstance(part, dict) or not part["location"].startswith("package:"):
            continue
        file = recipe.local_path(part["location"])
        assert file.is_file(), f"{name}: {file}"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == part["sha256"], name


def named(part: object) -> Iterator[tuple[str, str]]:
    """Yield location and licence of every model that a recipe names, at any depth."""
    if isinstance(part, dict):
        if {"location", "licence"} <= part.keys():
            yield part["location"], part["licence"]
        for value in part.values():
            yield from named(value)


def test_recipes_state_of_others_weights_what_their_publishers_do() -> None:
    known = 0
    for path in RECIPES:
        for location, licence in named(recipe.load(path).model_dump(mode="json")):
            if entry := catalog.find(Path(location.partition("?")[0]).stem):
                known += 1
                assert licence == entry.licence, f"{shown(path)}: {location}"
    assert known


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name == "compose"], ids=shown)
def test_a_compose_recipe_names_its_recognizer_by_the_shipped_sha256(path: Path) -> None:
    import hashlib

    loaded = recipe.load(path, kind="compose")
    assert isinstance(loaded, ComposeRecipe)
    assert loaded.name == path.stem
    if loaded.recognizer is not None:
        data = recipe.local_path(loaded.recognizer.location).read_bytes()
        assert hashlib.sha256(data).hexdigest() == loaded.recognizer.sha256


def test_dcface_goes_without_an_attribute_model_as_the_page_says() -> None:
    page = (ROOT / "docs" / "paper-scale.md").read_text()
    for told, kind in (("bank", "bank"), ("styles", "generate")):
        (given,) = re.findall(rf"{told}: `(--set [^`]*)`", page)
        words = [word for word in shlex.split(given) if word != "--set"]
        path = ROOT / "jobs/recipes/paper" / kind / "dcface.yaml"
        before, after = recipe.load(path), recipe.load(path, words)
        assert isinstance(before, BankRecipe | GenerateRecipe)
        assert isinstance(after, BankRecipe | GenerateRecipe)
        assert before.weights.keys() - after.weights.keys() == {"attributes"}
        if isinstance(after, GenerateRecipe):
            systems.create(after)


@pytest.mark.parametrize("path", RECIPES, ids=shown)
def test_shipped_weights_have_the_licence_it_states(path: Path) -> None:
    weights = getattr(recipe.load(path), "weights", {})
    shipped = {n: part for n, part in weights.items() if part.location.startswith("package:")}
    stated = {name: (part.licence, part.sha256) for name, part in shipped.items()}
    assert {m.name: (m.licence, m.sha256) for m in models(shipped)} == stated
