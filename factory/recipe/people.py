"""People: from what a generate recipe draws them, so that two datasets' people can be compared."""

from collections.abc import Mapping
from typing import Any

SPLITS = ("train", "judge", "gallery", "test", "synthetic")  # sets of studio people
BY_TEACHER = ("uniform", "anchors")  # drawn in the teacher's space, whatever the generator


def people_of(recipe: Mapping[str, Any]) -> str:
    """Return the name of the people whom a dataset draws; "" where they are its own.

    Two datasets of one name that draw candidate n have the same person.

    Args:
        recipe: what the dataset's manifest holds of its recipe, of any kind.
    """
    source = recipe.get("identities", {}).get("source", "")
    options, weights = recipe.get("options", {}), recipe.get("weights", {})
    if source in SPLITS:
        return f"studio {source}"
    for kind, option in (("bank", "bank"), ("file", "contexts")):
        if source == kind:
            return f"{kind} {options[option]['digest']}"
    if not source or not weights:
        return ""
    names = [name for name in sorted(weights) if source not in BY_TEACHER or name == "teacher"]
    drawn = [recipe["seed"], *(weights[name]["sha256"] for name in names)]
    if source == "anchors":
        drawn.append(options["anchors"])
    return f"{source} {' '.join(map(str, drawn))}"
