"""Make the five verification benchmarks of the studio as `.bin` files.

    factory make_benchmarks --out runs/benchmarks --pairs 6000 --tasks 8

A folder that holds all of them already is left as it is.
"""

import argparse
from pathlib import Path
from typing import NoReturn

from factory.commands import cli
from factory.evaluation.benchmarks import finished, write_benchmarks
from factory.evaluation.verification import FOLDS
from factory.recipe import InputError
from factory.studio.benchmarks import MOST_PAIRS


def job(arguments: argparse.Namespace) -> None:
    """Write each benchmark and the groups of its pairs, then a manifest with their sha256."""
    if not 0 < arguments.pairs <= MOST_PAIRS or arguments.pairs % (2 * FOLDS):
        raise InputError(
            f"--pairs {arguments.pairs}; accepted is a multiple of {2 * FOLDS} up to {MOST_PAIRS}"
        )
    if not 16 <= arguments.size <= 1024:
        raise InputError(f"--size {arguments.size}; accepted is 16 to 1024 pixels")
    made = {key: getattr(arguments, key) for key in ("pairs", "size", "seed")}
    folder = Path(arguments.out)
    if finished(folder, **made):
        print(f"{folder}: finished already, five benchmarks of {arguments.pairs} pairs")
        return
    spread = cli.spread(arguments)
    write_benchmarks(folder, **made, say=lambda line: print(line, flush=True), spread=spread)


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__)
    parser.add_argument("--out", type=cli.local, required=True, help="folder of the .bin files")
    parser.add_argument("--pairs", type=int, default=1000, help="pairs of each benchmark")
    parser.add_argument("--size", type=int, default=64, help="image size in pixels")
    parser.add_argument("--tasks", type=int, default=0, help="render in N Ray tasks at a time")
    parser.add_argument("--seed", type=int, default=1, help="root seed of the images")
    cli.run(parser, job)
