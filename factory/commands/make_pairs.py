"""Make a verification benchmark, a `.bin` file, from identities that were held out.

    python jobs/make_pairs.py runs/faces --to runs/faces_val.bin --skip 200

Folds share no identity, half of the pairs of each are genuine, and images are copied unchanged.
Leave out the identities that a training saw: --skip N leaves out the first N, --without COMPOSITION
those of a composition.
"""

import argparse
from pathlib import Path
from typing import NoReturn

from factory.commands import cli
from factory.datasets.store import Store
from factory.evaluation.verification import FOLDS
from factory.export.pairs import read_identity_groups, write_pairs
from factory.recipe import InputError


def job(arguments: argparse.Namespace) -> None:
    """Choose the pairs and write the file."""
    to = Path(arguments.to)
    if to.suffix != ".bin":
        raise InputError(f"--to {to}: accepted is the name of a .bin file")
    if arguments.skip < 0:
        raise InputError(f"--skip {arguments.skip}: accepted is 0 or more identities")
    groups = read_identity_groups(arguments.groups) if arguments.groups else None
    to.parent.mkdir(parents=True, exist_ok=True)
    written = write_pairs(
        Store(arguments.url),
        to,
        arguments.pairs,
        arguments.folds,
        arguments.seed,
        arguments.skip,
        Store(arguments.without) if arguments.without else None,
        groups,
    )
    print(
        f"{to}: {written.pairs} pairs of {written.identities} identities in {arguments.folds} "
        f"folds, sha256 {written.sha256[:16]}"
    )


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, url="folder or URL of a dataset or composition")
    parser.add_argument("--to", type=cli.file, required=True, help="the .bin file to write")
    parser.add_argument("--pairs", type=int, default=1000, help="number of pairs; half are genuine")
    parser.add_argument("--folds", type=int, default=FOLDS, help="parts; no two share an identity")
    parser.add_argument("--seed", type=int, default=1, help="draws identities, images and order")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first N identities")
    parser.add_argument("--without", default="", help="leave out this composition's identities")
    parser.add_argument(
        "--groups", default="", help="JSON or CSV of identities' groups; impostors share a group"
    )
    cli.run(parser, job)
