"""Train a face recognizer from a recipe.

    factory train_recognizer desk/fr/desk.yaml --out runs/fr/desk

To resume, run the same command again: it continues from the newest checkpoint. --onnx FILE also
writes the finished network as ONNX; a later call can add it.
"""

import argparse
from typing import NoReturn

from factory import tracking
from factory.commands import cli
from factory.datasets.store import Store
from factory.recipe import FRRecipe, load


def job(arguments: argparse.Namespace) -> None:
    """Check the recipe and the output folder, then train or continue, and record the curve."""
    recipe = load(arguments.recipe, arguments.overrides, kind="fr")
    assert isinstance(recipe, FRRecipe)
    from factory.cluster.connect import connect
    from factory.cluster.precision import settled
    from factory.training import output, recognition

    store = Store(arguments.out)
    recognition.check(recipe)
    recognition.check_inputs(recipe)
    recipe = output.kept(store, recipe)
    output.check_output(store, recipe)
    done = output.finished(store)
    if done is not None:
        print(f"{store.url}: finished already, loss {done['loss']:.3f} after {done['steps']} steps")
        recognition.export(store, arguments.onnx)
        return
    connect(arguments.address)
    recipe = settled(recipe, print)
    with (
        store.lock("train_recognizer") as lock,
        tracking.run(
            arguments.tracking_uri, "fr", recipe.name, recipe, output=store.url
        ) as tracked,
    ):
        store.sweep()

        def note(row: dict[str, float]) -> None:
            tracked.metrics(row, int(row["step"]))

        done = recognition.train(recipe, arguments.out, note, lock.check)
        files = [recognition.FILE, recognition.ARCFACE_TORCH, output.RECORD]
        version = output.register(tracked, store, recipe, files)
        if recipe.benchmarks:
            evaluate(recipe, store, tracked)
        output.finish(store, version)
    print(
        f"{store.url}: loss {done['loss']:.3f} after {done['steps']} steps on {done['images']} "
        f"images of {done['identities']} identities, {done['seconds']:.0f} s, "
        f"{done['images_per_second']:.0f} images/s"
    )
    recognition.export(store, arguments.onnx)


def evaluate(recipe: FRRecipe, store: Store, tracked: tracking.Run) -> None:
    """Measure the trained recognizer on the recipe's benchmarks."""
    from factory.evaluation import verification
    from factory.evaluation.benchmarks import benchmark_folder
    from factory.recognition.recognizers import FILE, load_recognizer

    with store.local(FILE) as path:
        found = verification.evaluate(
            load_recognizer(str(path)), benchmark_folder(recipe.benchmarks)
        )
    made = {f"{name}.accuracy": result.accuracy for name, result in found.items()}
    for name, value in {**made, "average": verification.average(found.values())}.items():
        print(f"{name}: {100 * value:.2f} % (Accuracy-Flip)")
        tracked.metrics({name: value})


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, recipe="an fr recipe (YAML)")
    parser.add_argument("--out", required=True, help="folder or URL of the recognizer")
    parser.add_argument(
        "--onnx", type=cli.file, default="", help="also write the finished network to this file"
    )
    cli.run(parser, job)
