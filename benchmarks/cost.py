"""Measure what an image of a student costs beside the papers' sampler on its teacher.

    python -m benchmarks.cost desk/generate/idiff_face.yaml desk/generate/idiff_face_full.yaml

The first recipe runs as it is. The second samples as the papers do: DDIM of 50 steps, eta 1,
float32, without guidance. Both make the same people in turn, `--repeats` times. An image's cost is
the seconds of a core that the manifest states: sampling, decoding, screening and encoding. Actors'
starts and the identity bank do not count.

Run it on an otherwise idle machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from factory.cluster.hardware import cpu_name
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.recipe import FaultError

PAPERS = ("sampler={name: ddim, steps: 50, eta: 1.0, batch_size: 16, dtype: float32}",)
IMAGES_EACH, SHARD = 10, 8  # whole batches of 16


def cost(recipe: str, people: int, sets: tuple[str, ...], folder: Path) -> float:
    """Generate a dataset as a user would; return seconds of a core for an image.

    Args:
        recipe: a generate recipe.
        people: how many people of ten images it makes.
        sets: the recipe's overrides.
        folder: an empty folder.

    Raises:
        FaultError: the generation failed.
    """
    sizes = (f"identities.count={people}", f"identities.images_each={IMAGES_EACH}")
    words = [sys.executable, "-m", "factory", "generate", recipe, "--out", str(folder / "data")]
    words += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    for override in (*sizes, f"shard.identities={SHARD}", *sets):
        words += ["--set", override]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise FaultError(f"{recipe}: {done.stderr.strip()}")
    totals = load_manifest(Store(folder / "data")).totals
    spent = sum(seconds for stage, seconds in totals.seconds.items() if stage != "identities")
    return spent / totals.kept


def compare(few: str, full: str, people: int, repeats: int) -> dict[str, Any]:
    """Return both costs of each round in seconds an image, and the median of their ratios."""
    rounds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            own = cost(few, people, (), Path(first))
            papers = cost(full, people, PAPERS, Path(second))
        rounds.append({"own": round(own, 5), "papers": round(papers, 5)})
        print(json.dumps(rounds[-1]), flush=True)
    return {
        "processor": cpu_name(),
        "recipes": [few, full],
        "papers": list(PAPERS),
        "images": people * IMAGES_EACH,
        "rounds": rounds,
        "ratio": round(statistics.median(r["papers"] / r["own"] for r in rounds), 1),
    }


def main() -> None:
    """Print the comparison and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("few", help="the recipe as it is shipped")
    parser.add_argument("full", help="the recipe of the denoiser that it follows")
    parser.add_argument("--people", type=int, default=24, help="of ten images each (default 24)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of both sides (default 3)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    given = parser.parse_args()
    result = compare(given.few, given.full, given.people, given.repeats)
    print(json.dumps(result))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
