"""Make an identity bank: candidates screened, set apart and drawn, one image an identity.

    python jobs/make_bank.py jobs/recipes/desk/bank/dcface.yaml --out runs/bank

The digest it prints names the bank in generate recipes. To resume, run the same command again.
"""

import argparse

from factory import cli, tracking
from factory.recipe import BankRecipe, load
from factory.shards.store import Store


def job(arguments: argparse.Namespace) -> None:
    """Check everything, then make and see candidates, choose, and commit."""
    recipe = load(arguments.recipe, arguments.overrides, kind="bank")
    assert isinstance(recipe, BankRecipe)
    from factory.banks import contents_digest
    from factory.engine import connect, preflight, require
    from factory.provenance import models
    from factory.selection import check, make_bank
    from factory.systems import create

    models(recipe.weights)
    check(recipe)
    if recipe.generate is not None:
        models(recipe.generate.weights)
        create(recipe.generate)
    store = Store(arguments.out)
    connect(arguments.address)
    pool = recipe.pool
    require([("pool.", pool.size, pool.num_cpus, pool.num_gpus)])
    if recipe.generate is not None:
        preflight(recipe.generate)
    with (
        store.lock("make_bank") as lock,
        tracking.run(arguments.tracking_uri, "make_bank", recipe.name, recipe) as tracked,
    ):
        manifest, counts = make_bank(recipe, arguments.out, cli.ProgressLine(), lock.check)
        tracked.dataset(recipe.name, store.url, manifest.content_digest)
        tracked.metrics({f"left/{step}": count for step, count in counts.items()})
    print(", ".join(f"{step} {count:,}" for step, count in counts.items()))
    print(
        f"{store.url}: {manifest.totals.kept:,} identities, licence {manifest.licence}, "
        f"digest {contents_digest(store)}"
    )


if __name__ == "__main__":
    parser = cli.parser(__doc__, recipe="a bank recipe (YAML)")
    parser.add_argument("--out", required=True, help="folder or URL of the bank")
    cli.run(parser, job)
