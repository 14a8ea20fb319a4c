"""The recipe of a prepared dataset, and the plan of its shards; nothing here reads or writes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from factory.datasets.provenance import Inherited
from factory.plan import ListedShard
from factory.prepare.listing import Item, Listing
from factory.recipe import Image, InputError, Natural, Part, Positive, Weights, digest

SYSTEM = "prepared"
MOST_IMAGES = 10_000  # most images of one identity, because keys have four digits for them
MOST_IDENTITIES = 10_000_000
CAPTURED = "digitalCapture"  # IPTC's term for a photograph; DIGITAL_SOURCE_TYPE is for made images
PIXEL_LIBRARIES = ("factory", "numpy", "simplejpeg", "pillow", "opencv-python")


class Counts(Part):
    """The number of identities of the source, and of images of its largest identity."""

    count: Positive
    images_each: Positive


class PrepareRecipe(Part):
    """A dataset that is made from existing images."""

    kind: Literal["prepare"] = "prepare"
    name: str
    system: Literal["prepared"] = SYSTEM
    licence: str
    source: str = Field(description="Address of the images, without credentials.")
    source_kind: str
    source_digest: str = Field(description="Digest of the listing: names, places and sizes.")
    image: Image
    identities: Counts
    shard_images: Positive = Field(description="Most images of one shard.")
    resize: bool = Field(description="Square images of another size were resized bilinearly.")
    keep: bool = Field(
        default=False,
        description="An image that is no JPEG is kept as PNG, whatever `image.format` says.",
    )
    align: bool = Field(description="Faces were found and aligned by five points.")
    detector_size: Natural = 0
    detector_threshold: float = 0.0
    weights: dict[str, Weights] = Field(default={}, description="Weights of the detector.")


def content_digest(recipe: PrepareRecipe, versions: dict[str, str]) -> str:
    """Return the digest of all that changes the dataset's bytes; name, licence and place do not."""
    fields = recipe.model_dump(mode="json", exclude={"name", "licence", "source", "weights"})
    weights = {name: part.sha256 for name, part in recipe.weights.items()}
    libraries = PIXEL_LIBRARIES + (("onnxruntime", "insightface") if recipe.align else ())
    used = {name: versions[name] for name in libraries if name in versions}
    return digest({**fields, "weights": weights, "versions": used})


def plan_shards(counts: Sequence[int], most: int) -> list[ListedShard]:
    """Cut identities into shards of at most `most` images each, in order.

    Whole identities share a shard as long as they fit. An identity with more images than that is
    cut by its slots.

    Args:
        counts: number of images of each identity, 1 or more.
        most: largest number of images of a shard, 1 or more.
    """
    made: list[ListedShard] = []
    start = images = 0

    def close(stop: int) -> None:
        if images:
            widest = max(counts[start:stop])
            made.append(ListedShard(start, stop, 0, widest, images))

    for identity, count in enumerate(counts):
        if images + count > most:
            close(identity)
            start, images = identity, 0
        if count > most:
            cuts = [*range(0, count, most), count]
            for first, stop in pairwise(cuts):
                made.append(ListedShard(identity, identity + 1, first, stop, stop - first))
            start = identity + 1
        else:
            images += count
    close(len(counts))
    return made


def entries_of(listing: Listing, shard: ListedShard) -> list[tuple[int, int, Item]]:
    """Return (identity, slot, entry) for every image of a shard, in key order."""
    return [
        (identity, slot, entry)
        for identity in range(shard.identity_start, shard.identity_stop)
        for slot, entry in enumerate(
            listing.images[identity][shard.slot_start : shard.slot_stop], shard.slot_start
        )
    ]


def counted(listing: Listing) -> Counts:
    """Return the counts of a listing; InputError if they are too large for a sample's key."""
    counts = [len(images) for images in listing.images]
    if max(counts) > MOST_IMAGES or len(counts) > MOST_IDENTITIES:
        largest = listing.identities[counts.index(max(counts))]
        raise InputError(
            f"SOURCE: {len(counts):,} identities, {largest} has {max(counts):,} images; accepted "
            f"are {MOST_IDENTITIES:,} identities of {MOST_IMAGES:,} images"
        )
    return Counts(count=len(counts), images_each=max(counts))


def claim_of(
    recipe: PrepareRecipe,
    digest: str,
    shards: Sequence[ListedShard],
    source_type: str,
    inherited: Inherited | None = None,
) -> dict[str, Any]:
    """Return the dataset's claim in the form that `factory.datasets.claim` reads."""
    handed_down = {} if inherited is None else {"inherited": inherited.model_dump(mode="json")}
    return {
        **handed_down,
        "recipe": recipe.model_dump(mode="json"),
        "grown": [],
        "content_digest": digest,
        "bank_digest": "",
        "digitalSourceType": source_type,
        "shards": [
            [s.identity_start, s.identity_stop, s.slot_start, s.slot_stop, s.planned]
            for s in shards
        ],
    }
