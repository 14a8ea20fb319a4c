"""Print what a generate recipe will make, and what that will cost; reads and writes nothing else.

python jobs/plan.py jobs/recipes/desk/generate/idiff_face.yaml
"""

import argparse
from collections import deque

from factory import cli
from factory.plan import shards, totals
from factory.recipe import GenerateRecipe, load


def job(arguments: argparse.Namespace) -> None:
    """Print shards, counts, bytes and actor-hours."""
    recipe = load(arguments.recipe, arguments.overrides, kind="generate")
    assert isinstance(recipe, GenerateRecipe)
    planned = totals(recipe)
    first, last = next(shards(recipe)), deque(shards(recipe), maxlen=1)[0]
    low, high = planned.actor_hours
    size = recipe.pool.size
    rows = {
        "recipe": f"{recipe.name} (system {recipe.system}, {recipe.image.size} px, "
        f"licence {recipe.licence})",
        "shards": f"{planned.shards:,}: {first.name} to {last.name}",
        "identities": f"{planned.identities:,} x {recipe.identities.images_each:,} images",
        "images": f"{planned.images:,}",
        "bytes": human(planned.bytes),
        "actor-hours": f"{hours(low)} to {hours(high)}",
        "wall time": f"{hours(low / size)} to {hours(high / size)} with {size} actors "
        "(pool.size), start-up aside",
        "source": planned.source,
    }
    for name, value in rows.items():
        print(f"{name:<12} {value}")


def human(size: int) -> str:
    """Write a number of bytes with three digits and a decimal unit."""
    value, units = float(size), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def hours(value: float) -> str:
    """Write hours, or minutes and seconds where hours would be a small fraction."""
    if value >= 1:
        return f"{value:,.1f} h"
    return f"{value * 60:.1f} min" if value >= 1 / 60 else f"{value * 3600:.1f} s"


if __name__ == "__main__":
    cli.run(cli.parser(__doc__, recipe="a generate recipe (YAML)"), job)
