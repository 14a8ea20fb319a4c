"""Print what a generate recipe will make, reserve and cost; write nothing.

factory plan desk/generate/idiff_face.yaml --cluster cluster.yaml

With --cluster, or FACTORY_GROWS_TO in the environment, it counts the nodes that this takes and
refuses what they cannot hold.
"""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from factory.commands import cli
from factory.nodes import GROWS_TO, Group, cluster_groups, grows_to, most_workers
from factory.plan import describe
from factory.recipe import GenerateRecipe, InputError, load, yaml_values


def job(arguments: argparse.Namespace) -> None:
    """Check the recipe as generate does; print shards, counts, bytes, nodes and hours."""
    recipe = load(arguments.recipe, arguments.overrides, kind="generate")
    assert isinstance(recipe, GenerateRecipe)
    from factory.systems import create

    create(recipe)
    cli.show(describe(recipe, *_groups(arguments.cluster)))


def _groups(file: str) -> tuple[list[Group], int | None]:
    """Return the groups of the cluster file and the most workers that it allows.

    Without a file they are those of FACTORY_GROWS_TO, which allows all, or there are none.
    """
    if not file:
        said = os.environ.get(GROWS_TO, "")
        return grows_to(said) if said else [], None
    try:
        text = Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--cluster {file}: {error}; accepted is a cluster file of Ray's"
        ) from None
    raw, what = yaml_values(text, f"--cluster {file}"), f"--cluster {file}"
    return cluster_groups(raw, what), most_workers(raw, what)


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, recipe="a generate recipe (YAML)")
    parser.add_argument(
        "--cluster", metavar="FILE", default="", help="cluster file of Ray's that must hold it"
    )
    cli.run(parser, job)
