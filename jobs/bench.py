"""Measure what the factory costs: generation on Ray against the same stages in plain processes.

    python jobs/bench.py jobs/recipes/desk/generate/idiff_face.yaml

Both sides make the same shards with as many workers, in turn, `--repeats` times. The figure is the
ratio of their steady-state speeds: from each worker's second shard to the first idle worker.
Start-up is stated beside it. Run it on an otherwise idle machine.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from factory import cli
from factory.recipe import GenerateRecipe, load


def job(arguments: argparse.Namespace) -> None:
    """Time both sides in turn and print the median ratio and its range."""
    recipe = load(arguments.recipe, arguments.overrides, kind="generate")
    assert isinstance(recipe, GenerateRecipe)
    from factory import bench
    from factory.engine import connect
    from factory.provenance import models

    models(recipe.weights)
    connect(arguments.address)
    rounds = []
    with tempfile.TemporaryDirectory(prefix="factory-bench-") as folder:
        for repeat in range(arguments.repeats):
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
    result = {
        "recipe": recipe.name,
        "workers": recipe.pool.size,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ray_startup_sec": round(statistics.median(r.startup_sec for _, r, _ in rounds), 1),
        "plain_startup_sec": round(statistics.median(p.startup_sec for *_, p in rounds), 1),
    }
    print(json.dumps(result))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = cli.parser(__doc__, recipe="a generate recipe (YAML)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of both sides (default 3)")
    parser.add_argument("--json", default="", help="also write the result to this file")
    cli.run(parser, job)
