"""Make a labelled dataset of synthetic faces from a recipe.

    factory generate desk/generate/idiff_face.yaml --out runs/faces

To resume, run the same command again: committed shards are kept, and the rest is made.
"""

import argparse
from typing import NoReturn

from factory import tracking
from factory.cluster.progress import ProgressLine
from factory.commands import cli
from factory.datasets.claim import check_claim, kept
from factory.datasets.store import Store
from factory.plan import describe
from factory.recipe import GenerateRecipe, content_digest, load


def job(arguments: argparse.Namespace) -> None:
    """Check everything, then claim the folder, fill it and merge its manifests."""
    recipe = load(arguments.recipe, arguments.overrides, kind="generate")
    assert isinstance(recipe, GenerateRecipe)
    if arguments.dry_run:
        from factory.systems import create

        create(recipe)
        cli.show(describe(recipe))
        return
    from factory.cluster.connect import connect
    from factory.cluster.precision import settled
    from factory.datasets.provenance import pinned, versions
    from factory.generation.run import Show, check_sources, fill, preflight

    handed_down = check_sources(recipe)
    store = Store(arguments.out)
    recipe = kept(store, pinned(recipe))
    check_claim(store, recipe, versions(recipe.weights), arguments.extend)
    connect(arguments.address)
    preflight(recipe)
    recipe = settled(recipe, print)
    with (
        store.lock("generate") as lock,
        tracking.run(
            arguments.tracking_uri, "generate", recipe.name, recipe, output=store.url
        ) as tracked,
    ):
        line = ProgressLine()
        with tracking.paced(tracked, "shards") as note:
            made = fill(recipe, lock, handed_down, line, arguments.extend, Show(line, note))
        tracked.dataset(recipe.name, store.url, content_digest(recipe, versions(recipe.weights)))
        tracked.metrics({"images": made.totals.kept, "planned": made.totals.planned})
        tracked.metrics({f"rejects/{k}": v for k, v in made.totals.reasons.items()})
        tracked.metrics({f"seconds/{k}": v for k, v in made.totals.seconds.items()})
    print(
        f"{store.url}: {made.totals.kept} of {made.totals.planned} images in "
        f"{made.shards} shards, {made.shards - made.found} made now"
    )


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, recipe="a generate recipe (YAML)")
    parser.add_argument("--out", required=True, help="folder or URL of the dataset")
    parser.add_argument("--extend", action="store_true", help="grow the dataset in --out")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and exit")
    cli.run(parser, job)
