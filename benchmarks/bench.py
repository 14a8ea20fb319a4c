"""Measure what the factory costs, in generation or in training.

    python -m benchmarks.bench jobs/recipes/desk/generate/idiff_face.yaml
    python -m benchmarks.bench jobs/recipes/desk/fr/desk.yaml

With a generate recipe, it compares generation on Ray with the same stages in plain processes. Both
sides make the same shards with as many workers, in turn, `--repeats` times. The figure is the ratio
of their steady-state speeds, measured from each worker's second shard to the first idle worker. It
also states how many operations an image takes, and what share the generation reaches of the rate at
which the machine multiplies matrices in float32 and in bfloat16.

With an fr recipe, it compares the recipe's training loop with a plain PyTorch loop of the same
model, batch and precision, and with that loop in float32 and contiguous layout.

Run it on an otherwise idle machine.
"""

import argparse
import json
from pathlib import Path

from factory.commands import cli
from factory.recipe import FRRecipe, GenerateRecipe, InputError, load, with_precision


def job(arguments: argparse.Namespace) -> None:
    """Time both sides in turn and print the result as JSON."""
    recipe = load(arguments.recipe, arguments.overrides)
    if isinstance(recipe, FRRecipe):
        from benchmarks.speed import compare
        from factory.cluster import hardware
        from factory.cluster.precision import common

        chosen = common([hardware.processor(gpu=False)], "engine.precision")
        result = compare(with_precision(recipe, chosen), arguments.repeats)
    elif isinstance(recipe, GenerateRecipe):
        from benchmarks import overhead
        from factory.cluster.connect import connect
        from factory.cluster.precision import settled
        from factory.datasets.provenance import models

        models(recipe.weights)
        connect(arguments.address)
        result = overhead.compare(settled(recipe, print), arguments.repeats)
    else:
        raise InputError(f"recipe field kind: {recipe.kind!r}; this job accepts generate and fr")
    print(json.dumps(result))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = cli.parser(__doc__, recipe="a generate or fr recipe (YAML)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of both sides (default 3)")
    parser.add_argument(
        "--json", type=cli.file, default="", help="also write the result to this file"
    )
    cli.run(parser, job)
