"""Make a dataset from existing face images: folders, RecordIO files or WebDataset tars.

    factory prepare faces/ --out runs/mine --licence CC-BY-4.0
    factory prepare train.rec --out runs/casia --licence non-commercial-research
    factory prepare photos/ --out runs/aligned --licence own --align --detector det_10g.onnx

Images keep their bytes where possible. Images that are left out are counted and listed with the
reason. To resume, run the same command again.
"""

import argparse
from dataclasses import fields
from typing import NoReturn

from factory import tracking
from factory.cluster.progress import ProgressLine
from factory.commands import cli
from factory.datasets.store import Store
from factory.recipe import InputError


def job(arguments: argparse.Namespace) -> None:
    """Plan and check everything, then fill the folder and merge its manifests."""
    from factory.prepare.run import Wishes, check_claim, plan, prepare

    if arguments.actors < 0:
        raise InputError(f"--actors {arguments.actors}; accepted is 1 or more, or 0 for all CPUs")
    wishes = {field.name: getattr(arguments, field.name) for field in fields(Wishes)}
    given, store = plan(Wishes(**wishes)), Store(arguments.out)
    check_claim(store, given.claim)
    recipe, listing = given.recipe, given.listing
    print(
        f"{recipe.source}: {listing.kind}, {listing.count:,} images of {recipe.identities.count:,} "
        f"identities, {listing.ignored:,} other files, {listing.hidden:,} hidden; "
        f"{recipe.image.size} px {recipe.image.format}, {len(given.shards)} shards",
        flush=True,
    )
    for note in listing.notes:
        print(note, flush=True)
    for name, model in recipe.weights.items():
        print(f"{name}: {model.location}, licence {model.licence}", flush=True)
    from factory.cluster.connect import connect

    connect(arguments.address)
    with (
        store.lock("prepare") as lock,
        tracking.run(
            arguments.tracking_uri, "prepare", recipe.name, recipe, output=store.url
        ) as tracked,
    ):
        manifest = prepare(given, store, arguments.actors, ProgressLine(), lock.check, print)
        tracked.dataset(recipe.name, store.url, given.content_digest)
        tracked.metrics({"images": manifest.totals.kept, "planned": manifest.totals.planned})
        tracked.metrics({f"rejects/{k}": v for k, v in manifest.totals.reasons.items()})
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in manifest.totals.reasons.items())
    print(
        f"{store.url}: {manifest.totals.kept:,} of {manifest.totals.planned:,} images in "
        f"{len(manifest.shards)} shards, licence {manifest.licence}; left out: "
        f"{left_out or 'none'}"
    )


def main() -> NoReturn:
    """Read the command line and run."""
    parser = cli.parser(
        __doc__, source="folder with one folder per identity, .rec file, or WebDataset tars"
    )
    add = parser.add_argument
    add("--out", required=True, help="folder or URL of the dataset")
    add("--licence", required=True, help="licence of the images, as their publisher states it")
    add("--name", default="", help="name of the dataset (default: the source's)")
    add(
        "--size",
        type=cli.positive,
        help="edge in pixels (default: the images' own; 112 with --align)",
    )
    add("--format", choices=("jpg", "png"), default="", help="default: jpg if all images are")
    add("--resize", action="store_true", help="scale square images of another size bilinearly")
    add(
        "--align",
        action="store_true",
        help="find the face in each photograph and align its five points",
    )
    add("--detector", default="", help="SCRFD detector for --align, FILE.onnx[?licence=NAME]")
    add("--recognizer", default="", help="also keep this recognizer's embeddings")
    add("--synthetic", action="store_true", help="a model made the images: say so in each sidecar")
    add(
        "--label",
        default="",
        help="where labels stand: FILE, json:FIELD, txt, folder, ...",
    )
    add("--identity-level", type=int, help="depth of the folder that is a person (default: 1)")
    add("--unlabelled", action="store_true", help="every image is a person of its own, as in FFHQ")
    add("--shard-images", type=int, default=2000, help="most images of one shard (2000)")
    add("--actors", type=int, default=0, help="workers at once (default: one a CPU)")
    cli.run(parser, job)
