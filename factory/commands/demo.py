"""Run the whole chain on the desk: recipe, dataset, recognizer, benchmarks, gap-to-real, report.

    factory demo

By default it takes fewer steps than the recipes state, so that it takes minutes on any processor.
To resume, run the same command again: every step keeps what it has finished.
"""

import argparse
import json
from pathlib import Path
from typing import NoReturn

from factory import stops, tracking
from factory.commands import cli
from factory.datasets.store import Store


def job(arguments: argparse.Namespace) -> None:
    """Run the chain on one Ray cluster and print its table."""
    import ray

    from factory.cluster.connect import connect
    from factory.commands.chain import BENCHMARKS
    from factory.commands.demonstration import DEMO, Demo, show
    from factory.evaluation.benchmarks import benchmark_folder

    run, store = Path(arguments.out), Store(arguments.out)
    uri = tracking.resolve(arguments.tracking_uri)
    given = {name: getattr(arguments, name) for name in ("out", "smallest", "full", "seeds")}
    sizes = {name: getattr(arguments, name) for name in ("smallest", "full", "from_scratch")}
    wanted = {"kind": "demo", **sizes}
    DEMO.check(store, wanted)
    with (
        store.lock("demo"),
        tracking.run(uri, "demo", run.name, given, output=store.url) as tracked,
        stops.keeping(lambda: "finished steps are kept"),
    ):
        DEMO.write(store, wanted)
        connect(arguments.address)
        address = ray.get_runtime_context().gcs_address
        seeds, benchmarks = range(1, arguments.seeds + 1), benchmark_folder(BENCHMARKS)
        demo = Demo(run, address, uri, seeds, benchmarks, arguments.smallest, arguments.full)
        if arguments.from_scratch:
            demo.train_all()
        results = json.loads(demo.chain().read_text())
        for row, values in results["benchmarks"].items():
            tracked.metrics({f"{row}.average": sum(values["average"]) / len(values["average"])})
        tracked.metrics({"gap.absolute": results["gap"]["absolute"]})
        tracked.artifact(run / "results.json")
        tracked.artifact(run / "report.html")
        page = tracked.url
    show(results)
    print(f"\nreport: {(run / 'report.html').resolve()}\nMLflow: {page}")


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__)
    parser.add_argument("--out", type=cli.local, default="runs/demo", help="folder of the run")
    parser.add_argument(
        "--seeds", type=cli.positive, default=1, help="trainings of each row (default 1)"
    )
    parser.add_argument(
        "--smallest", action="store_true", help="finish in minutes; the figures mean nothing"
    )
    parser.add_argument(
        "--full", action="store_true", help="run the unchanged recipes, as docs/results.md"
    )
    parser.add_argument("--from-scratch", action="store_true", help="train every network first")
    cli.run(parser, job)
