"""Train an autoencoder or a system's denoiser from a recipe.

    factory train_diffusion desk/train/idiff_face.yaml --out runs/idiff_face

To resume, run the same command again: it continues from the last complete checkpoint.
"""

import argparse
from typing import NoReturn

from factory import tracking
from factory.cluster.progress import ProgressLine
from factory.commands import cli
from factory.datasets.store import Store, below
from factory.recipe import TrainRecipe, load


def job(arguments: argparse.Namespace) -> None:
    """Check the recipe and the output folder, then train."""
    recipe = load(arguments.recipe, arguments.overrides, kind="train")
    assert isinstance(recipe, TrainRecipe)
    from factory.cluster.capacity import require, trainers
    from factory.cluster.connect import connect
    from factory.cluster.precision import settled
    from factory.training import output
    from factory.training.diffusion import train, trainable_class
    from factory.training.sidecar import precompute

    trainable_class(recipe.system)
    store = Store(arguments.out)
    recipe = output.kept(store, recipe)
    output.check_output(store, recipe)
    done = output.finished(store)
    if done is not None:
        print(f"{below(store.url, done['file'])}: finished already, {done['steps']} steps")
        return
    output.check_data(recipe)
    connect(arguments.address)
    engine = recipe.engine
    require([trainers(engine)])
    recipe = settled(recipe, print)
    with (
        store.lock("train_diffusion") as lock,
        tracking.run(
            arguments.tracking_uri, "train", recipe.name, recipe, output=store.url
        ) as tracked,
    ):
        output.claim(store, recipe)
        precompute(recipe, ProgressLine())
        summary = train(recipe, arguments.out, tracked, arguments.max_steps, lock.check)
        tracked.tag("out", store.url)
        if summary["steps"] == summary["total"]:
            files = [summary["file"], output.RECORD]
            output.finish(store, output.register(tracked, store, recipe, files))
    print(
        f"{below(store.url, summary['file'])}: {summary['steps']} of {summary['total']} steps, "
        f"{summary['parameters']:,} parameters, {summary['bytes'] / 1e6:.1f} MB"
    )


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, recipe="a train recipe (YAML)")
    parser.add_argument("--out", required=True, help="folder or URL of checkpoints and weights")
    parser.add_argument("--max-steps", type=cli.positive, help="stop after step N of the schedule")
    cli.run(parser, job)
