"""Measure the quality of a dataset under a recognizer: separation together with spread.

python jobs/measure.py runs/faces --recognizer runs/judge --json quality.json

Quote the figures of a judge, a recognizer no generator, loss or screen has seen.
"""

import argparse
import json
from pathlib import Path

from factory import cli, tracking
from factory.evaluation.dataset import embed_dataset
from factory.evaluation.quality import Radius, gallery_radius, measure
from factory.recipe import InputError
from factory.shards.store import Store

SHOWN = (
    *("identities", "images", "eer", "fmr100", "fmr1000", "fdr", "genuine_mean", "impostor_mean"),
    *("spread", "uniqueness", "consistency", "r", "r_fpr"),
)


def job(arguments: argparse.Namespace) -> None:
    """Embed the dataset, measure, print and note the result."""
    if arguments.r is not None and not -1 <= arguments.r <= 1:
        raise InputError(f"--r {arguments.r}; accepted is a cosine, -1 to 1")
    store = Store(arguments.url)
    from factory.recognition.recognizers import load_recognizer

    recognizer = load_recognizer(arguments.recognizer)
    embedded = embed_dataset(
        store, recognizer, arguments.identities, arguments.images_each, arguments.resize
    )
    r: float | None = arguments.r
    radius = gallery_radius(recognizer) if r is None else Radius(r, 0.0, 0)
    found = measure(embedded, radius)
    width = max(map(len, SHOWN))
    for name in SHOWN:
        value = found[name]
        print(f"{name:<{width}}  {'unresolved' if value is None else f'{value:.6g}'}")
    print(f"impostors: {found['impostor_choice']}; under {recognizer.name}")
    who = {"name": recognizer.name, "sha256": recognizer.sha256, "licence": recognizer.licence}
    content = {"dataset": store.url, "recognizer": who, **found}
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    given = {"dataset": store.url, "recognizer": who}
    with tracking.run(arguments.tracking_uri, "measure", recognizer.name, given) as run:
        run.metrics({name: found[name] for name in SHOWN if found[name] is not None})


if __name__ == "__main__":
    parser = cli.parser(__doc__, url="folder or URL of a dataset")
    parser.add_argument("--recognizer", required=True, help="a checkpoint folder or a reference")
    parser.add_argument("--json", default="", help="also write the result to this file")
    parser.add_argument("--identities", type=int, help="measure only labels below this")
    parser.add_argument("--images-each", type=int, help="measure only the first N images of each")
    parser.add_argument("--r", type=float, help="radius as a cosine (default: from the gallery)")
    parser.add_argument("--resize", action="store_true", help="resize images of another size")
    cli.run(parser, job)
