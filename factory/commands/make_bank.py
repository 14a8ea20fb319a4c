"""Make an identity bank: screen candidates, set them apart and draw identities from them.

    factory train_diffusion desk/train/dcface_identities.yaml --out runs/dcface_identities
    factory make_bank desk/bank/dcface.yaml --out runs/bank

The bank has one image per identity. The printed digest names the bank in generate recipes. To
resume, run the same command again.
"""

import argparse
from typing import NoReturn

from factory import tracking
from factory.cluster.progress import ProgressLine
from factory.commands import cli
from factory.datasets.claim import claimed
from factory.datasets.store import Store
from factory.recipe import BankRecipe, load


def job(arguments: argparse.Namespace) -> None:
    """Check everything, then make and embed candidates, choose among them, and commit."""
    recipe = load(arguments.recipe, arguments.overrides, kind="bank")
    assert isinstance(recipe, BankRecipe)
    from factory.cluster.capacity import require
    from factory.cluster.connect import connect
    from factory.datasets.images import contents_digest
    from factory.datasets.provenance import models
    from factory.generation.run import preflight
    from factory.generation.selection import check, make_bank
    from factory.nodes import makers
    from factory.systems import create

    models(recipe.weights)
    check(recipe)
    if recipe.generate is not None:
        models(recipe.generate.weights)
        create(recipe.generate)
    store = Store(arguments.out)
    claimed(store, recipe.kind)
    connect(arguments.address)
    require([makers(recipe.workers)])
    if recipe.generate is not None:
        preflight(recipe.generate)
    with (
        store.lock("make_bank") as lock,
        tracking.run(
            arguments.tracking_uri, "make_bank", recipe.name, recipe, output=store.url
        ) as tracked,
    ):
        manifest, counts = make_bank(recipe, arguments.out, ProgressLine(), lock.check)
        tracked.dataset(recipe.name, store.url, manifest.content_digest)
        tracked.metrics({f"left/{step}": count for step, count in counts.items()})
    print(", ".join(f"{step} {count:,}" for step, count in counts.items()))
    print(
        f"{store.url}: {manifest.totals.kept:,} identities, licence {manifest.licence}, "
        f"digest {contents_digest(store)}"
    )


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, recipe="a bank recipe (YAML)")
    parser.add_argument("--out", required=True, help="folder or URL of the bank")
    cli.run(parser, job)
