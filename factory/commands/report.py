"""Write the HTML report of a run, a dataset or a sweep: one file that opens offline.

    factory report runs/demo
    factory report runs/sweep
    factory report runs/faces --measures judge.json --measures benchmarks.json

A dataset's page shows its measurements: the JSON of measure.py and evaluate.py that --measures
names and that the dataset's folder `measures/` holds.
"""

import argparse
from typing import NoReturn

from factory.commands import cli
from factory.datasets.store import Store, below
from factory.recipe import InputError
from factory.report.page import REPORT, collect, page, write_page
from factory.report.sweep import sweep_page
from factory.search.results import is_sweep


def job(arguments: argparse.Namespace) -> None:
    """Collect what the folder contains and write the page."""
    store = Store(arguments.url)
    if is_sweep(store):
        if arguments.measures:
            raise InputError(
                f"--measures {arguments.measures[0]}: only a dataset takes these, {store.url} is a "
                "sweep"
            )
        text = sweep_page(store)
    else:
        text = page(collect(arguments.url, arguments.measures))
    if arguments.to:
        print(f"report: {write_page(arguments.to, text)}")
        return
    store.write(REPORT, text.encode())
    print(f"report: {below(store.url, REPORT)}")


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, url="folder or URL of a run, a dataset or a sweep")
    parser.add_argument(
        "--to", type=cli.file, default="", help=f"file to write (default: URL/{REPORT})"
    )
    parser.add_argument(
        "--measures",
        action="append",
        default=[],
        help="JSON of measure.py or evaluate.py (repeatable)",
    )
    cli.run(parser, job)
