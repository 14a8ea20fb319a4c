"""Make a verification benchmark, a `.bin` file, from identities that were held out.

    factory make_pairs runs/faces --to runs/faces_val.bin --skip 200
    factory make_pairs lfw/ --to lfw.bin --pairs pairs.txt

Folds share no identity, half of the pairs of each are genuine, and images are copied unchanged.
Leave out the identities that a training saw: --skip N leaves out the first N, --without COMPOSITION
those of a composition. --pairs FILE packs pairs that somebody listed, in their order: LFW's text
form, or CSV of two paths and 0 or 1.
"""

import argparse
from pathlib import Path
from typing import NoReturn

from factory.commands import cli
from factory.datasets.store import Store
from factory.evaluation.verification import FOLDS
from factory.export.listed_pairs import write_listed_pairs
from factory.export.pairs import read_identity_groups, write_pairs
from factory.recipe import InputError

DIGITS = 12  # of a count


def job(arguments: argparse.Namespace) -> None:
    """Choose the pairs and write the file."""
    to = Path(arguments.to)
    if to.suffix != ".bin":
        raise InputError(f"--to {to}: accepted is the name of a .bin file")
    if arguments.skip < 0:
        raise InputError(f"--skip {arguments.skip}: accepted is 0 or more identities")
    count = _count(arguments.pairs)
    if count is None:
        _listed(arguments, to)
        return
    groups = read_identity_groups(arguments.groups) if arguments.groups else None
    written = write_pairs(
        Store(arguments.url),
        to,
        count,
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


def _count(pairs: str) -> int | None:
    """Return how many pairs are to be drawn; None where a file lists them."""
    if not pairs.lstrip("-").isdecimal():
        return None
    if len(pairs) > DIGITS:
        raise InputError(f"--pairs {pairs[:DIGITS]}...: {len(pairs)} digits; accepted is a count")
    return int(pairs)


def _listed(arguments: argparse.Namespace, to: Path) -> None:
    """Write the pairs that a file lists."""
    for flag, unsaid in (("skip", 0), ("without", ""), ("groups", ""), ("folds", FOLDS)):
        given = getattr(arguments, flag)
        if given != unsaid:
            raise InputError(
                f"--{flag} {given}: with --pairs FILE the file alone says which pairs; leave out "
                f"--{flag}, or give a number as --pairs"
            )
    packed = write_listed_pairs(Store(arguments.url), to, Path(arguments.pairs))
    print(f"{to}: {packed.pairs} pairs of {packed.images} images, sha256 {packed.sha256[:16]}")


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, url="a dataset or composition; of listed pairs also a folder")
    parser.add_argument("--to", type=cli.file, required=True, help="the .bin file to write")
    parser.add_argument("--pairs", default="1000", help="how many to draw, or a file of pairs")
    parser.add_argument("--folds", type=int, default=FOLDS, help="parts that share no identity")
    parser.add_argument("--seed", type=int, default=1, help="draws identities, images and order")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first N identities")
    parser.add_argument("--without", default="", help="leave out this composition's identities")
    parser.add_argument(
        "--groups", default="", help="JSON or CSV of identities' groups; impostors share a group"
    )
    cli.run(parser, job)
