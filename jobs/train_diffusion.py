"""Train an autoencoder or a system's denoiser from a recipe.

    python jobs/train_diffusion.py jobs/recipes/desk/train/idiff_face.yaml --out runs/idiff_face

To resume, run the same command again: it continues from the last complete checkpoint.
"""

import argparse

from factory import cli, tracking
from factory.recipe import TrainRecipe, load
from factory.shards.store import Store, below


def job(arguments: argparse.Namespace) -> None:
    """Check the recipe and the output folder, then train."""
    recipe = load(arguments.recipe, arguments.overrides, kind="train")
    assert isinstance(recipe, TrainRecipe)
    from factory.engine import connect, require
    from factory.precision import settled
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
    connect(arguments.address)
    engine = recipe.engine
    require([("engine.", engine.workers, engine.num_cpus, engine.num_gpus)])
    recipe = settled(recipe, print)
    with (
        store.lock("train_diffusion") as lock,
        tracking.run(arguments.tracking_uri, "train", recipe.name, recipe) as tracked,
    ):
        output.claim(store, recipe)
        precompute(recipe, cli.ProgressLine())
        summary = train(recipe, arguments.out, tracked, arguments.max_steps, lock.check)
        tracked.tag("out", store.url)
        if summary["steps"] == summary["total"]:
            files = [summary["file"], output.RECORD]
            output.finish(store, output.register(tracked, store, recipe, files))
    print(
        f"{below(store.url, summary['file'])}: {summary['steps']} of {summary['total']} steps, "
        f"{summary['parameters']:,} parameters, {summary['bytes'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    parser = cli.parser(__doc__, recipe="a train recipe (YAML)")
    parser.add_argument("--out", required=True, help="folder or URL of checkpoints and weights")
    parser.add_argument("--max-steps", type=int, help="stop after this step of the schedule")
    cli.run(parser, job)
