"""Print what a generate recipe will make and what that will cost; read and write nothing else.

factory plan desk/generate/idiff_face.yaml
"""

import argparse
from typing import NoReturn

from factory.commands import cli
from factory.plan import describe
from factory.recipe import GenerateRecipe, load


def job(arguments: argparse.Namespace) -> None:
    """Check the recipe as generate does; print shards, counts, bytes and actor-hours."""
    recipe = load(arguments.recipe, arguments.overrides, kind="generate")
    assert isinstance(recipe, GenerateRecipe)
    from factory.systems import create

    create(recipe)
    cli.show(describe(recipe))


def main() -> NoReturn:
    """Read the command line and run."""
    cli.run(cli.parser(__doc__, recipe="a generate recipe (YAML)"), job)
