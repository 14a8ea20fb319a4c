"""The desk's recipes as they are shipped, with overrides."""

from pathlib import Path

from factory.recipe import FRRecipe, GenerateRecipe, load

RECIPES = Path(__file__).parents[1] / "jobs/recipes/desk"
IDIFF = RECIPES / "generate/idiff_face.yaml"
TRAIN = RECIPES / "train/idiff_face.yaml"
FR = RECIPES / "fr/desk.yaml"


def faces(*overrides: str) -> GenerateRecipe:
    recipe = load(IDIFF, overrides)
    assert isinstance(recipe, GenerateRecipe)
    return recipe


def recognizer(*overrides: str) -> FRRecipe:
    recipe = load(FR, overrides)
    assert isinstance(recipe, FRRecipe)
    return recipe
