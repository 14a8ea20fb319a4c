"""Compose finished datasets into a view that a recognizer trains on; nothing is generated again.

    factory compose desk/compose/mix.yaml --out runs/mix
    factory compose ... --out runs/mix --materialise runs/mix_shards

To resume, run the same command again. `data.train` of a recipe accepts the folder of a composition;
--materialise also writes its images as shuffled tar shards, which need no pool and suit any reader.
"""

import argparse
from typing import Any, NoReturn

from factory import tracking
from factory.cluster.progress import ProgressLine
from factory.commands import cli
from factory.datasets.compose import compose
from factory.datasets.composition import Composition
from factory.datasets.materialise import materialise
from factory.datasets.store import Store
from factory.recipe import ComposeRecipe, Weights, load


def recognizer(weights: Weights) -> Any:
    """Load the recognizer that measures a centre_band; most compositions need none."""
    from factory.recognition.recognizers import checked_recognizer

    return checked_recognizer(weights)


def job(arguments: argparse.Namespace) -> None:
    """Compose, and write shards if --materialise asks for them."""
    recipe = load(arguments.recipe, arguments.overrides, kind="compose")
    assert isinstance(recipe, ComposeRecipe)
    store, line = Store(arguments.out), ProgressLine()
    with store.lock("compose"):
        store.sweep()
        made = compose(recipe, store, say=line, load=recognizer)
    cli.show(describe(made))
    if arguments.materialise:
        to = Store(arguments.materialise)
        with to.lock("compose"):
            to.sweep()
            manifest = materialise(store, to, say=line)
        print(f"{to.url}: {manifest.totals.kept:,} images in {len(manifest.shards)} shards")
    with tracking.run(arguments.tracking_uri, "compose", recipe.name, recipe) as tracked:
        for name, pool in made.pools.items():
            tracked.dataset(name, pool.url, pool.content_digest)
        tracked.metrics({"images": made.images_with_repeats, "identities": made.identities})
        tracked.tag("out", store.url)
        tracked.tag("content_digest", made.content_digest)


def describe(made: Composition) -> dict[str, str]:
    """Return what was composed, as the lines that the command prints."""
    rows = {}
    for name, pool in made.pools.items():
        removed = sum(pool.removed.model_dump().values())
        rows[name] = (
            f"{pool.identities:,} identities, {pool.images:,} images x {pool.repeat} of "
            f"{pool.offered_identities:,}, {pool.offered_images:,}"
            + (f"; band and least_images left out {removed:,}" if removed else "")
            + (f"; mean cosine to the centre {pool.mean_cosine:.3f}" if pool.mean_cosine else "")
        )
    rows["together"] = (
        f"{made.identities:,} identities, {made.images:,} images, {made.images_with_repeats:,} an "
        f"epoch; content digest {made.content_digest}; licence {made.licence}"
    )
    return rows


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, recipe="a compose recipe (YAML)")
    parser.add_argument("--out", required=True, help="folder or URL of the composition")
    parser.add_argument("--materialise", default="", metavar="URL", help="also write shards to URL")
    cli.run(parser, job)
