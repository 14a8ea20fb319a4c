"""Measure what the factory costs, in generation or in training.

    python jobs/bench.py jobs/recipes/desk/generate/idiff_face.yaml
    python jobs/bench.py jobs/recipes/desk/fr/desk.yaml

Of a generate recipe: generation on Ray against the same stages in plain processes. Both sides make
the same shards with as many workers, in turn, `--repeats` times; the figure is the ratio of their
steady-state speeds, from each worker's second shard to the first idle worker. It also tells what an
image computes, and what share that is of the rate at which the machine multiplies matrices in
float32 and bfloat16. Of an fr recipe: its training loop against a plain PyTorch loop of the same
model, batch and precision, and against that loop in float32 and contiguous layout. Run it on an
otherwise idle machine.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from factory import cli
from factory.recipe import (
    FRRecipe,
    GenerateRecipe,
    InputError,
    load,
    stated_precision,
    with_precision,
)


def job(arguments: argparse.Namespace) -> None:
    """Time the sides in turn and print the median ratio and its range."""
    recipe = load(arguments.recipe, arguments.overrides)
    if isinstance(recipe, FRRecipe):
        from factory import hardware
        from factory.precision import common
        from factory.training.speed import compare

        chosen = common([hardware.processor(gpu=False)], "engine.precision")
        result = compare(with_precision(recipe, chosen), arguments.repeats)
    elif isinstance(recipe, GenerateRecipe):
        result = generation(recipe, arguments.repeats, arguments.address)
    else:
        raise InputError(f"recipe field kind: {recipe.kind!r}; this job accepts generate and fr")
    print(json.dumps(result))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


def generation(recipe: GenerateRecipe, repeats: int, address: str) -> dict[str, Any]:
    """Time generation on Ray and in plain processes."""
    from factory import bench, hardware
    from factory.engine import connect
    from factory.precision import settled
    from factory.provenance import models

    models(recipe.weights)
    connect(address)
    recipe = settled(recipe, print)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="factory-bench-") as folder:
        for repeat in range(repeats):
            ray = bench.on_ray(recipe, Path(folder) / f"ray{repeat}")
            plain = bench.in_processes(recipe, Path(folder) / f"plain{repeat}")
            if ray.tars != plain.tars:
                raise cli.FaultError("the two sides wrote different bytes")
            rounds.append((ray.images_per_sec / plain.images_per_sec, ray, plain))
            print(
                f"round {repeat + 1}: Ray {ray.images_per_sec:.2f} images/s (start-up "
                f"{ray.startup_sec:.1f} s), plain {plain.images_per_sec:.2f} images/s (start-up "
                f"{plain.startup_sec:.1f} s), ratio {rounds[-1][0]:.3f}",
                flush=True,
            )
    ratios = sorted(ratio for ratio, *_ in rounds)
    speed = statistics.median(side.images_per_sec for _, side, _ in rounds)
    return {
        "recipe": recipe.name,
        "processor": hardware.cpu_name(),
        "precision": stated_precision(recipe),
        "workers": recipe.pool.size,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ray_startup_sec": round(statistics.median(r.startup_sec for _, r, _ in rounds), 1),
        "plain_startup_sec": round(statistics.median(p.startup_sec for *_, p in rounds), 1),
        "images_per_second": round(speed, 2),
        **bench.arithmetic(recipe, speed),
    }


if __name__ == "__main__":
    parser = cli.parser(__doc__, recipe="a generate or fr recipe (YAML)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of both sides (default 3)")
    parser.add_argument(
        "--json", type=cli.local, default="", help="also write the result to this file"
    )
    cli.run(parser, job)
