"""Measure the quality of a dataset under a recognizer: separation, spread and leakage.

    factory measure runs/faces --recognizer runs/judge --json quality.json
    factory measure runs/faces --recognizer runs/judge --against runs/real --held-out runs/unseen
    factory measure runs/faces --recognizer runs/judge --real runs/real --coverage

Report the figures of a judge: a recognizer that no generator, loss or screen has seen.
"""

import argparse
import json
from typing import NoReturn

from factory import tracking
from factory.commands import cli
from factory.datasets.store import write_file
from factory.evaluation.beside import FLAGS, Beside
from factory.evaluation.dataset import embed_dataset, finished
from factory.evaluation.embedding import embed_by_pool
from factory.evaluation.leakage import metrics, of_datasets, real_datasets, tables
from factory.evaluation.quality import SHOWN, Radius, gallery_radius, measure, write_faces
from factory.evaluation.tables import show
from factory.recipe import InputError


def job(given: argparse.Namespace) -> None:
    """Embed the dataset, measure it, and print and record the result."""
    if given.r is not None and not -1 <= given.r <= 1:
        raise InputError(f"--r {given.r}; accepted is a cosine, -1 to 1")
    if given.tasks < 0:
        raise InputError(f"--tasks {given.tasks}; accepted is 0 or more")
    store = finished(given.url)
    real = real_datasets(store, given.against, given.held_out)
    from factory.recognition.recognizers import load_recognizer

    recognizer = load_recognizer(given.recognizer)
    beside = Beside.of(given)
    if given.tasks:
        from factory.cluster.connect import connect

        connect(given.address)
    chosen = given.identities, given.images_each
    if given.tasks and chosen == (None, None):
        embedded = embed_by_pool(
            store, given.recognizer, recognizer.sha256, given.tasks, given.resize
        )
    else:
        embedded = embed_dataset(store, recognizer, *chosen, given.resize)
    for line in write_faces(embedded, recognizer.sha256, given.embeddings, given.centres):
        print(line)
    radius = gallery_radius(recognizer) if given.r is None else Radius(given.r, 0.0, 0)
    found = measure(embedded, radius, tasks=given.tasks)
    numbers = {name: found[name] for name in SHOWN if found[name] is not None}
    cli.show({name: f"{numbers[name]:.6g}" if name in numbers else "unresolved" for name in SHOWN})
    print(f"{found['genuine_choice']}; {found['impostor_choice']}; under {recognizer.name}")
    if real:
        how = (radius, real, given.resize, given.tasks)
        found["leakage"] = of_datasets(store, embedded, recognizer, *how)
        show(tables(found["leakage"]))
        numbers |= metrics(found["leakage"])
    other = beside.measure(store)
    show(other.tables)
    found, numbers = found | other.content, numbers | other.metrics
    who = {"name": recognizer.name, "sha256": recognizer.sha256, "licence": recognizer.licence}
    what = {"dataset": store.url, "recognizer": who}
    if given.json:
        write_file(given.json, (json.dumps({**what, **found}, indent=1) + "\n").encode())
    with tracking.run(given.tracking_uri, "measure", recognizer.name, what) as run:
        run.metrics(numbers)


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(__doc__, url="folder or URL of a dataset")
    parser.add_argument("--recognizer", required=True, help="a checkpoint folder or a reference")
    parser.add_argument("--json", type=cli.file, default="", help="also write the result here")
    parser.add_argument("--identities", type=cli.positive, help="measure only labels below N")
    parser.add_argument(
        "--images-each", type=cli.positive, help="measure only the first N images of each label"
    )
    parser.add_argument("--r", type=float, help="radius as a cosine (default: from the gallery)")
    parser.add_argument("--resize", action="store_true", help="resize images of another size")
    parser.add_argument("--against", default="", help="leakage: the generator's training data")
    parser.add_argument(
        "--held-out", default="", help="leakage: real faces that the generator has not seen"
    )
    parser.add_argument(
        "--tasks", type=int, default=0, help="search, and embed a whole dataset, in N Ray tasks"
    )
    parser.add_argument(
        "--embeddings", type=cli.file, default="", help="also write the embeddings here"
    )
    parser.add_argument(
        "--centres", type=cli.file, default="", help="also write the identities' centres here"
    )
    for flag, options in FLAGS.items():
        parser.add_argument(flag, **options)
    cli.run(parser, job)
