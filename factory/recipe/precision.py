"""The precision that a recipe states, and how `auto` becomes a fixed value."""

from typing import Any, TypeVar

from factory.recipe.fr import FRRecipe
from factory.recipe.generate import GenerateRecipe
from factory.recipe.load import apply, checked
from factory.recipe.parts import AUTO
from factory.recipe.train import TrainRecipe

R = TypeVar("R", GenerateRecipe, TrainRecipe, FRRecipe)


def precision_field(recipe: GenerateRecipe | TrainRecipe | FRRecipe) -> str:
    """Return the name of the field that states the precision; "" if the recipe has none."""
    if isinstance(recipe, GenerateRecipe):
        return "sampler.dtype" if recipe.sampler else ""
    return "engine.precision"


def stated_precision(recipe: GenerateRecipe | TrainRecipe | FRRecipe) -> str:
    """Return the precision a recipe states: float32, bfloat16 or auto; "" if it states none."""
    value: Any = recipe
    for name in filter(None, precision_field(recipe).split(".")):
        value = getattr(value, name)
    return value if isinstance(value, str) else ""


def with_precision(recipe: R, precision: str) -> R:
    """Return the recipe with `auto` replaced by a precision; unchanged if it states another."""
    if stated_precision(recipe) != AUTO:
        return recipe
    raw = recipe.model_dump(mode="json")
    apply(raw, f"{precision_field(recipe)}={precision}")
    return checked(type(recipe), raw, "recipe field ")


def kept_precision(recipe: R, held: Any) -> R:
    """Return the recipe with `auto` replaced by the precision in the output's claim.

    Args:
        recipe: the recipe of this run.
        held: the recipe in the output's claim, as JSON values; None if there is no claim.

    Raises:
        InputError: the claim states an unknown precision.
    """
    for name in filter(None, precision_field(recipe).split(".")):
        held = held.get(name) if isinstance(held, dict) else None
    return recipe if held is None else with_precision(recipe, held)
