"""Measure a recognizer on benchmarks: verification, IJB or TinyFace.

    factory evaluate --recognizer runs/fr --benchmarks runs/benchmarks --json fr.json

--protocol verification reads every `.bin` of a folder, adds the embeddings of image and mirror
image and reports Accuracy-Flip over ten folds, +- the standard deviation over folds; --groups adds
figures by group. ijb reads an IJB-B or IJB-C release, verifies 1:1 and prints the switches.
tinyface reports closed-set rank-1 and rank-5.
"""

import argparse
import json
from typing import NoReturn

from factory import tracking
from factory.commands import cli
from factory.datasets.store import write_file
from factory.evaluation.protocols import PROTOCOLS, SWITCHES, evaluate
from factory.evaluation.tables import show
from factory.recipe import public


def job(arguments: argparse.Namespace) -> None:
    """Evaluate, print the tables and record the result."""
    from factory.recognition.recognizers import load_recognizer

    recognizer = load_recognizer(arguments.recognizer)
    options = {name: getattr(arguments, name) for name in ("resize", "groups", "switches")}
    found = evaluate(
        recognizer,
        arguments.protocol,
        arguments.benchmarks,
        lambda line: print(line, flush=True),
        **options,
    )
    show(found.tables)
    who = {"name": recognizer.name, "sha256": recognizer.sha256, "licence": recognizer.licence}
    who["location"] = public(arguments.recognizer)
    if arguments.json:
        content = {"recognizer": who, **found.content}
        write_file(arguments.json, (json.dumps(content, indent=1) + "\n").encode())
    given = {"recognizer": who, "benchmarks": arguments.benchmarks, "protocol": arguments.protocol}
    with tracking.run(arguments.tracking_uri, "evaluate", recognizer.name, given | options) as run:
        run.metrics(found.metrics)


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__)
    parser.add_argument("--recognizer", required=True, help="a checkpoint folder or a reference")
    parser.add_argument("--benchmarks", required=True, help="folder of .bin files or of a release")
    parser.add_argument(
        "--protocol", default="verification", choices=PROTOCOLS, help="how to measure"
    )
    parser.add_argument("--groups", default="", help="file that states the group of each pair")
    parser.add_argument(
        "--switches",
        default="",
        help=f"for ijb: norm, detector, flip, separated by commas (default: {SWITCHES})",
    )
    parser.add_argument(
        "--json", type=cli.file, default="", help="also write the result to this file"
    )
    parser.add_argument("--resize", action="store_true", help="resize images of another size")
    cli.run(parser, job)
