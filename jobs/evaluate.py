"""Measure a recognizer on every `.bin` benchmark of a folder.

python jobs/evaluate.py --recognizer runs/fr --benchmarks runs/benchmarks --json fr.json

The protocol is the field's: mirror images summed, ten folds, Accuracy-Flip +- the standard
deviation over folds.
"""

import argparse
import json
from pathlib import Path

from factory import cli, tracking
from factory.evaluation.verification import Verification, average, evaluate


def job(arguments: argparse.Namespace) -> None:
    """Evaluate, print the table and note the result."""
    from factory.recognition.recognizers import load_recognizer

    recognizer = load_recognizer(arguments.recognizer)
    found = evaluate(
        recognizer, arguments.benchmarks, arguments.resize, lambda line: print(line, flush=True)
    )
    mean = average(found.values())
    show(recognizer.name, found, mean)
    who = {"name": recognizer.name, "sha256": recognizer.sha256, "licence": recognizer.licence}
    who["location"] = tracking.masked(arguments.recognizer)
    results = {name: result.as_dict() for name, result in found.items()}
    if arguments.json:
        content = {"recognizer": who, "benchmarks": results, "average": mean}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    given = {"recognizer": who, "benchmarks": arguments.benchmarks, "resize": arguments.resize}
    with tracking.run(arguments.tracking_uri, "evaluate", recognizer.name, given) as run:
        run.metrics({f"{name}.accuracy": result.accuracy for name, result in found.items()})
        run.metrics({"average": mean})


def show(name: str, found: dict[str, Verification], mean: float) -> None:
    """Print one row a benchmark, in percent."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name}, in percent")
    for column in ("benchmark", "pairs", "Accuracy-Flip", "EER", "TAR@FAR=1e-3"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    for result in found.values():
        table.add_row(
            result.name,
            f"{result.pairs}",
            f"{100 * result.accuracy:.2f} +- {100 * result.accuracy_std:.2f}",
            f"{100 * result.eer:.2f}",
            f"{100 * result.tar:.2f}" if result.tar_resolved else "unresolved",
        )
    table.add_row("average", "", f"{100 * mean:.2f}", "", "", style="bold")
    Console().print(table)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("--recognizer", required=True, help="a checkpoint folder or a reference")
    parser.add_argument("--benchmarks", required=True, help="folder of .bin files")
    parser.add_argument("--json", default="", help="also write the result to this file")
    parser.add_argument("--resize", action="store_true", help="resize images of another size")
    cli.run(parser, job)
