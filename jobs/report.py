"""Write the HTML report of a run or of a dataset: one file that opens offline.

python jobs/report.py runs/demo
python jobs/report.py runs/faces --measures judge.json --measures benchmarks.json

A dataset's page shows what was measured of it: the JSON of measure.py and evaluate.py, as given
and in its folder `measures/`.
"""

import argparse

from factory import cli
from factory.report.page import REPORT, collect, page, write_report
from factory.shards.store import Store


def job(arguments: argparse.Namespace) -> None:
    """Collect what the folder holds and write the page."""
    results = collect(arguments.url, arguments.measures)
    if arguments.to:
        print(f"report: {write_report(arguments.to, results)}")
        return
    store = Store(arguments.url)
    store.write(REPORT, page(results).encode())
    print(f"report: {store.url.rstrip('/')}/{REPORT}")


if __name__ == "__main__":
    parser = cli.parser(__doc__, url="folder or URL of a run or of a dataset")
    parser.add_argument("--to", default="", help=f"file to write (default: URL/{REPORT})")
    parser.add_argument(
        "--measures",
        action="append",
        default=[],
        help="JSON of measure.py or evaluate.py (repeatable)",
    )
    cli.run(parser, job)
