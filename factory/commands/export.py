"""Export a dataset or a composition in a format that other trainers read.

    factory export runs/faces --format arcface_torch --to runs/acme_v1 --size 112
    factory export s3://bucket/faces --format wds --to s3://bucket/acme_v1

docs/export.md says what each format contains and how to train from it.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NoReturn

from factory.commands import cli
from factory.datasets.store import Store
from factory.export.export import FORMATS, Options, export
from factory.export.recordio import DIALECTS
from factory.recipe import InputError


def job(arguments: argparse.Namespace) -> None:
    """Export, and print what was written."""
    options = Options(
        format=arguments.format,
        dialect=arguments.dialect,
        size=arguments.size,
        seed=arguments.seed,
        pairs=arguments.pairs,
        measured=tuple(read_measured(path) for path in arguments.measured),
        c2pa=(Path(arguments.c2pa[0]), Path(arguments.c2pa[1])) if arguments.c2pa else None,
    )
    target = Store(arguments.to)
    about = export(Store(arguments.url), target, options)
    print(
        f"{target.url}: {about.images:,} images of {about.classes:,} identities, {about.size} px, "
        f"licence {about.source.licence}; README.md says how to train from it"
    )


def read_measured(path: str) -> dict[str, Any]:
    """Read a file that `jobs/measure.py --json` wrote.

    Raises:
        InputError: the file cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--measured {path}: {error}; accepted is a file of measure.py") from None
    if not isinstance(found, dict):
        raise InputError(f"--measured {path}: not a JSON object; accepted is a file of measure.py")
    return found


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, url="folder or URL of a dataset or composition")
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="format to write")
    parser.add_argument("--to", required=True, help="empty folder or URL; its name is the export's")
    parser.add_argument("--dialect", choices=DIALECTS, help="dialect of RecordIO (default: im2rec)")
    parser.add_argument("--size", type=int, help="resize to N pixels (112 for arcface_torch)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order (default: 0)")
    parser.add_argument("--pairs", type=int, default=0, help="make N pairs of held-out identities")
    parser.add_argument(
        "--measured", action="append", default=[], help="JSON of measure.py (repeatable)"
    )
    parser.add_argument("--c2pa", nargs=2, metavar=("CERT", "KEY"), help="sign a contact sheet")
    cli.run(parser, job)
