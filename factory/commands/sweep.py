"""Search a space with Ray Tune for the composition that makes the best recognizer.

    factory sweep tune_spaces/similarity_bands.py --samples 8 --out runs/sweep
    factory report runs/sweep

A trial generates the pools that are missing, composes them, trains a recognizer on the composition
and evaluates it on the benchmarks. To resume, run the same command again: finished trials are kept,
and unfinished ones continue from their checkpoints. --set takes fields of the trials' recipes:
fr.FIELD=, generate.FIELD=, compose.FIELD=.
"""

import argparse
from dataclasses import replace
from typing import NoReturn

from factory.commands import cli
from factory.datasets.store import Store, below
from factory.recipe import InputError
from factory.search.results import BEST
from factory.search.space import load_space


def job(arguments: argparse.Namespace) -> None:
    """Check the space, run its remaining trials and print the result."""
    space = load_space(arguments.space, arguments.overrides)
    if arguments.seeds < 0:
        raise InputError(f"--seeds {arguments.seeds}: accepted are 1 and more")
    if arguments.seeds:
        space = replace(space, seeds=tuple(range(1, arguments.seeds + 1)))
    if arguments.benchmarks:
        space = replace(space, benchmarks=arguments.benchmarks)
    from factory.cluster.connect import connect
    from factory.search.sweep import sweep

    connect(arguments.address)
    summary = sweep(
        space,
        arguments.out,
        arguments.samples,
        arguments.pools,
        arguments.concurrent,
        arguments.tracking_uri,
        lambda line: print(line, flush=True),
    )
    url = Store(arguments.out).url
    spent = summary["generation"]
    print(
        f"{url}: {summary['done']} trials; wall time over their own {summary['overhead']}, "
        f"start-up of a trial {summary['startup_seconds']} s; generation "
        f"{spent['made_seconds']:.0f} s of actors' work, {spent['saved_seconds']:.0f} s saved by "
        "pools that were there"
    )
    if summary["best"] is not None:
        print(f"best: trial {summary['best']}; its recipes are in {below(url, BEST)}")
    if len(space.objectives) > 1:
        print(f"Pareto front in {', '.join(space.objectives)}: trials {summary['front']}")


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, space="a Python file with a SPACE")
    parser.add_argument("--out", required=True, help="folder or URL of the sweep")
    parser.add_argument("--samples", type=int, required=True, help="total number of trials")
    parser.add_argument(
        "--seeds", type=int, default=0, help="train seeds 1 to N per trial (default: SPACE's)"
    )
    parser.add_argument(
        "--concurrent", type=int, default=0, help="trials at a time (default: as many as fit)"
    )
    parser.add_argument(
        "--benchmarks",
        help="folder of .bin files that verify the recognizers (default: SPACE's)",
    )
    parser.add_argument(
        "--pools", default="runs/pools", help="folder or URL of the pools that sweeps share"
    )
    cli.run(parser, job)
