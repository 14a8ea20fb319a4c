"""The run of a preparation, from listing the source to the merged manifest."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from factory import stops
from factory.datasets import catalog, provenance
from factory.datasets.claim import CLAIM, Claim, claimed
from factory.datasets.decode import JPEG_MAGIC
from factory.datasets.embeddings import embeddings_file
from factory.datasets.manifest import DatasetManifest, committed, load_manifest, merge
from factory.datasets.store import Store, parted
from factory.plan import ListedShard
from factory.prepare.detector import SIZE, THRESHOLD, Detector
from factory.prepare.images import dimensions
from factory.prepare.listing import DATASET, Item, Listing
from factory.prepare.origin import exported
from factory.prepare.reader import ItemReader
from factory.prepare.recipe import (
    CAPTURED,
    PrepareRecipe,
    claim_of,
    content_digest,
    counted,
    entries_of,
    plan_shards,
)
from factory.prepare.sources import list_source
from factory.prepare.work import Preparer, PrepareWork, Task
from factory.recipe import FaultError, Image, InputError, Weights, checked, local_path

PEEK = 64  # images to look at for size and format, evenly spread over the source
ALIGNED_SIZE = 112
# Source and detector may move, because that changes no bytes; their digests must be equal.
PREPARED = Claim(
    CLAIM,
    "the dataset",
    free=("shards", "recipe.source", "recipe.weights.detector.location"),
    bound=("recipe.source_kind", "recipe.source_digest"),
)


CHANGED = {
    "reencoded": "images were encoded again, since their format or depth is no plain JPEG or PNG",
    "turned": "images were turned upright by their EXIF tag",
    "resized_from": "images were scaled",
    "png beside jpg": "images are no JPEG and lie there as PNG, so that no pixel is lost (--format "
    "makes all images one format)",
}


@dataclass(frozen=True)
class Wishes:
    """The user's wishes: the flags of the command prepare."""

    source: str
    licence: str
    name: str = ""
    size: int | None = None
    format: Literal["", "jpg", "png"] = ""
    resize: bool = False
    align: bool = False
    detector: str = ""
    recognizer: str = ""
    synthetic: bool = False
    unlabelled: bool = False
    label: str = ""
    identity_level: int | None = None
    shard_images: int = 2000


@dataclass(frozen=True)
class Preparation:
    """A checked preparation that can run.

    Attributes:
        source: the store of the images.
        listing: the list of all images.
        recipe: the recipe of the dataset.
        shards: the planned shards.
        content_digest: the digest of recipe and library versions.
        claim: the claim of the dataset's folder.
        recognizer: its reference, and the sha256 of its weights; two "" for none.
    """

    source: Store
    listing: Listing
    recipe: PrepareRecipe
    shards: list[ListedShard]
    content_digest: str
    claim: dict[str, Any]
    recognizer: tuple[str, str]


def plan(wishes: Wishes) -> Preparation:
    """List the source, fill in what the user left open, and check everything; writes nothing.

    Raises:
        InputError: source, detector or recognizer are not usable, or images have different sizes
            and the user asked for none.
    """
    if wishes.align != bool(wishes.detector):
        what = "without --detector" if wishes.align else "missing, but --detector is given"
        raise InputError(
            f"--align: {what}; accepted is --align --detector FILE.onnx, an SCRFD detector, as "
            "det_10g.onnx of insightface's buffalo_l (non-commercial research)"
        )
    if wishes.shard_images < 1:
        raise InputError(f"--shard-images {wishes.shard_images}; accepted is 1 or more")
    for flag, text in (("licence", wishes.licence), ("name", wishes.name or "prepared")):
        if not text.strip() or not text.isprintable():
            raise InputError(f"--{flag} {text!r}; accepted is text in one line")
    source, listing = list_source(
        wishes.source, wishes.unlabelled, wishes.label, wishes.identity_level
    )
    counts = counted(listing)
    weights: dict[str, Weights] = {}
    if wishes.align:
        weights["detector"] = _detector(wishes.detector)
    recipe = PrepareRecipe(
        name=wishes.name or Path(parted(source.url)[0]).name or "prepared",
        licence=wishes.licence,
        source=source.url,
        source_kind=listing.kind,
        source_digest=listing.digest,
        image=_image(source, listing, wishes),
        identities=counts,
        shard_images=wishes.shard_images,
        resize=wishes.resize,
        keep=not (wishes.format or wishes.align),
        align=wishes.align,
        detector_size=SIZE if wishes.align else 0,
        detector_threshold=THRESHOLD if wishes.align else 0.0,
        weights=weights,
    )
    recognizer = ("", "")
    if wishes.recognizer:
        recognizer = (wishes.recognizer, _recognizer_sha256(wishes.recognizer, recipe))
    shards = plan_shards([len(images) for images in listing.images], wishes.shard_images)
    digest = content_digest(recipe, _versions(recipe.align))
    source_type, handed_down = CAPTURED, None
    if listing.kind == DATASET:
        made = load_manifest(source)
        source_type = made.digitalSourceType
        handed_down = provenance.Inherited(models=made.models, licences=(made.licence,))
    elif (stated := exported(source)) is not None:
        handed_down, source_type = stated[0], stated[1] or CAPTURED
    if wishes.synthetic:
        source_type = provenance.DIGITAL_SOURCE_TYPE
    claim = claim_of(recipe, digest, shards, source_type, handed_down)
    return Preparation(source, listing, recipe, shards, digest, claim, recognizer)


def check_claim(store: Store, claim: dict[str, Any]) -> None:
    """Compare a claim with the folder's; InputError if the folder holds something else."""
    if claimed(store, "prepare", PREPARED) is not None:
        PREPARED.check(store, claim)


def prepare(
    given: Preparation,
    store: Store,
    actors: int,
    say: Callable[[str], None],
    check_lock: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = lambda line: None,
) -> DatasetManifest:
    """Make every missing shard, then merge the manifests.

    Args:
        given: the preparation.
        store: the dataset's folder, locked by the caller.
        actors: number of actors with one CPU each; 0 takes every CPU of the cluster.
        say: receives one line of progress at a time.
        check_lock: called once a shard; it raises where the folder is another writer's by now.
        tell: receives what the user is to know of images that were changed.

    Raises:
        InputError: the folder is another dataset's, or the cluster does not have so many CPUs.
        FaultError: a disk, store or source failed, or a planned shard is missing at the end.
    """
    from factory.cluster.capacity import cpus
    from factory.cluster.workers import each
    from factory.nodes import Reservation

    check_claim(store, given.claim)
    PREPARED.write(store, given.claim)
    store.sweep()
    todo = list(_todo(given, store))
    if len(todo) < len(given.shards):
        done = len(given.shards) - len(todo)
        say(f"resuming: {done} of {len(given.shards)} shards are committed")
    detector = given.recipe.weights["detector"].location if given.recipe.align else ""
    assignment = PrepareWork(
        given.source,
        store,
        given.recipe,
        given.content_digest,
        given.claim["digitalSourceType"],
        _versions(given.recipe.align),
        str(local_path(detector).absolute()) if detector else "",
        given.recognizer[0],
    )
    rows = ({"task": _task(given.listing, shard)} for shard in todo)  # not the whole list again
    reserved = Reservation("--actors", "--actors ", min(actors or cpus(), len(todo)))
    of_all = f"of {len(given.shards)} shards are committed"
    left = given, store
    changed: Counter[str] = Counter()
    with stops.keeping(
        lambda: f"{len(given.shards) - len(list(_todo(*left)))} {of_all}", store.sweep
    ):
        for number, row in enumerate(each(rows, Preparer, assignment, reserved), 1):
            check_lock()
            changed.update(json.loads(str(np.ravel(row["made"])[0])))
            say(f"shards {len(given.shards) - len(todo) + number}/{len(given.shards)}")
    if changed:
        tell("in this run " + ", ".join(f"{n:,} {CHANGED[how]}" for how, n in changed.items()))
    missing = [shard.name for shard in _todo(given, store)]
    if missing:
        raise FaultError(f"{len(missing)} planned shards are missing, the first {missing[0]}")
    return merge(store, given.shards)


def _todo(given: Preparation, store: Store) -> Iterator[ListedShard]:
    """Yield the shards that are not committed, or lack the wanted embeddings."""
    done = committed(store)
    sha256 = given.recognizer[1]
    embedded = set(store.list(f"embeddings/{sha256}")) if sha256 else set()
    for shard in given.shards:
        whole = shard.name in done
        if not whole or (sha256 and embeddings_file(sha256, shard.name) not in embedded):
            yield shard


def _task(listing: Listing, shard: ListedShard) -> Task:
    names = range(shard.identity_start, shard.identity_stop)
    return Task(shard, entries_of(listing, shard), {n: listing.identities[n] for n in names})


def _versions(align: bool) -> dict[str, str]:
    extra = ("onnxruntime", "insightface") if align else ()
    return provenance.versions() | {name: metadata.version(name) for name in extra}


def _detector(reference: str) -> Weights:
    file, _, query = reference.partition("?")
    path, stated = Path(file), query.removeprefix("licence=")
    if query and (stated == query or not stated):
        raise InputError(f"--detector {reference}: accepted is FILE.onnx or FILE.onnx?licence=NAME")
    Detector(path)  # refuses another file before anything is written
    sha256 = provenance.sha256_file(path)
    licence = catalog.licence_of(path, stated)
    return Weights(location=str(path), sha256=sha256, licence=licence)


def _recognizer_sha256(reference: str, recipe: PrepareRecipe) -> str:
    from factory.recognition.recognizers import load_recognizer

    recognizer = load_recognizer(reference)
    if recognizer.size != recipe.image.size and not recipe.resize:
        raise InputError(
            f"--recognizer {reference}: takes {recognizer.size} pixels, the dataset has "
            f"{recipe.image.size}; accepted is --size {recognizer.size}, or --resize"
        )
    return recognizer.sha256


def _image(source: Store, listing: Listing, wishes: Wishes) -> Image:
    """Return size and format of the dataset: the user's, or else those of a sample of images."""
    size, kind = wishes.size, wishes.format
    if wishes.align:
        size, kind = size or ALIGNED_SIZE, kind or "jpg"
    if not size or not kind:
        seen = list(_peeked(source, listing))
        if not kind:
            kind = _format([data for _, data in seen])
        size = size or _one_size(source, seen)
    return checked(Image, {"size": size, "format": kind}, "--size, --format: image.")


def _peeked(source: Store, listing: Listing) -> Iterator[tuple[Item, bytes]]:
    reader = ItemReader(source, listing.kind)
    step = max(listing.count // PEEK, 1)
    for entry in islice(chain.from_iterable(listing.images), 0, None, step):
        yield entry, reader.read(entry)
    reader.close()


def _format(seen: Sequence[bytes]) -> Literal["jpg", "png"]:
    """Return what most of the readable images are; a dataset of JPEG keeps others as PNG."""
    kinds = [data.startswith(JPEG_MAGIC) for data in seen if dimensions(data) is not None]
    return "jpg" if kinds and sum(kinds) * 2 >= len(kinds) else "png"


def _one_size(source: Store, seen: list[tuple[Item, bytes]]) -> int:
    """Return the side in pixels that all readable images of the sample have."""
    first: tuple[Item, tuple[int, int]] | None = None
    for entry, data in seen:
        size = dimensions(data)
        if size is None:
            continue
        first = first or (entry, size)
        if size != first[1] or size[0] != size[1]:
            raise InputError(
                f"SOURCE {source.url}: {first[0].name} has {first[1][0]} x {first[1][1]} pixels, "
                f"{entry.name} {size[0]} x {size[1]}; accepted is one square size, or --size N "
                "(others are left out, or scaled with --resize), or --align"
            )
    if first is None:
        raise InputError(
            f"SOURCE {source.url}: none of {len(seen)} images looked at can be read; accepted are "
            "JPEG, PNG, WebP, BMP, TIFF, PGM, PPM and GIF"
        )
    return first[1][0]
