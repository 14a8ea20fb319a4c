"""A small dataset of real images with coloured patches, and what an export of it has to hold."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from factory.datasets.claim import write_claim
from factory.datasets.manifest import ShardManifest, commit_shard, merge
from factory.datasets.provenance import DIGITAL_SOURCE_TYPE
from factory.datasets.store import Store
from factory.datasets.tar import write_tar
from factory.plan import Shard, sample_key, shards
from factory.recipe import GenerateRecipe, parse

IDENTITIES, SLOTS, SIZE, PATCH = 9, 4, 32, 12
EMPTY = 3  # the identity that lost all its images: labels after it move up
LOST = (5, 2)
MAGIC = bytes.fromhex("0a23d7ce")  # RecordIO's, as it lies in a file


Draw = Callable[[int, int, int], np.ndarray]
Facts = Callable[[int, int], dict[str, Any]]


@dataclass
class Made:
    """A dataset, and the multiset of (label, sha256 of pixels) its exports must have."""

    store: Store
    pixels: Counter[tuple[int, str]]
    encoded: Counter[tuple[int, bytes]]


def picture(identity: int, slot: int, size: int) -> np.ndarray:
    """Return noise of its own, with a red patch on the left and a blue one on the right."""
    image = np.random.default_rng((identity, slot)).integers(60, 200, (size, size, 3), np.uint8)
    image[:PATCH, :PATCH] = (230, 20, 20)
    image[:PATCH, -PATCH:] = (20, 20, 230)
    return image


def encode(image: np.ndarray, extension: str) -> bytes:
    if extension == "jpg":
        return simplejpeg.encode_jpeg(image, 95, colorspace="RGB", colorsubsampling="444")
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def pixels(encoded: bytes) -> np.ndarray:
    """Decode with a library the exporter does not use."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def colours_kept(image: np.ndarray) -> bool:
    scale = len(image) / SIZE
    inner = int(PATCH * scale) - 3
    red, blue = image[2:inner, 2:inner].mean((0, 1)), image[2:inner, -inner:-2].mean((0, 1))
    return red[0] > 200 > 80 > red[2] and blue[2] > 200 > 80 > blue[0]


def recipe(**changes: Any) -> GenerateRecipe:
    raw: dict[str, Any] = {
        "kind": "generate",
        "name": "patches",
        "seed": 5,
        "system": "studio",
        "licence": "CC0-1.0",
        "image": {"size": SIZE},
        "identities": {"count": IDENTITIES, "images_each": SLOTS, "source": "train"},
        "shard": {"identities": 4, "slots": 2},
        "workers": {"max": 1},
        "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
        "screens": {"near_duplicate": {"max_cosine": 0.95}},
        "weights": {
            "teacher": {"location": "teacher.st", "sha256": "ab" * 32, "licence": "MIT"},
            "denoiser": {
                "location": "denoiser.st",
                "sha256": "cd" * 32,
                "licence": "CC-BY-NC-4.0",
            },
        },
    }
    made = parse(raw | changes)
    assert isinstance(made, GenerateRecipe)
    return made


def commit(
    store: Store,
    shard: Shard,
    made: GenerateRecipe,
    work: Path,
    magic: bool,
    content: str,
    draw: Draw,
    facts: Facts,
) -> None:
    extension = made.image.format

    def sample(identity: int, slot: int) -> tuple[str, dict[str, bytes]]:
        data = encode(draw(identity, slot, made.image.size), extension)
        if magic and identity == 0:  # after the image's end, where decoders do not look
            data += bytes(-len(data) % 4) + MAGIC * slot + b"\1\2\3\4" + MAGIC
        sidecar = {
            "identity": identity,
            "slot": slot,
            "content_digest": content,
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
            **facts(identity, slot),
        }
        return sample_key(identity, slot), {
            extension: data,
            "cls": b"%d" % identity,
            "json": json.dumps(sidecar).encode(),
        }

    empty = [s for s in shard.slots if s[0] == EMPTY or s == LOST]
    tar, rejects = work / "shard.tar", work / "rejects"
    sha256, size = write_tar(tar, (sample(*s) for s in shard.slots if s not in empty))
    rejects.write_bytes(b"")
    manifest = ShardManifest(
        name=shard.name,
        sha256=sha256,
        bytes=size,
        planned=shard.samples,
        kept=shard.samples - len(empty),
        reasons={"near_duplicate": len(empty)},
        missing=tuple(sample_key(*s) for s in empty),
        seconds={"render": 0.25},
        content_digest=content,
        system="studio",
        versions={"numpy": "2.0"},
        rejects_sha256=hashlib.sha256(b"").hexdigest(),
    )
    commit_shard(store, tar, rejects, manifest)


def held(store: Store) -> list[tuple[int, bytes]]:
    """Return (label, image) of a dataset by Python's own tar reader, labels without gaps."""
    found = []
    for name in sorted(store.list("shards")):
        if name.endswith(".tar"):
            with store.local(name) as path, tarfile.open(path) as tar:
                parts = {m.name: tar.extractfile(m) for m in tar.getmembers()}
                read = {name: file.read() for name, file in parts.items() if file is not None}
            for member in read:
                if member.endswith((".jpg", ".png")):
                    found.append((int(read[member[:-3] + "cls"]), read[member]))
    ranks = {label: n for n, label in enumerate(sorted({label for label, _ in found}))}
    return [(ranks[label], encoded) for label, encoded in found]


def make(
    url: str | Path,
    work: Path,
    magic: bool = False,
    content: str = "0123456789abcdef",
    draw: Draw = picture,
    facts: Facts = lambda identity, slot: {},
    **changes: Any,
) -> Made:
    """Make the dataset; with `magic` some images end in RecordIO's magic number."""
    store, what = Store(url), recipe(**changes)
    work.mkdir(exist_ok=True)
    write_claim(store, what, content, ())
    for shard in shards(what):
        commit(store, shard, what, work, magic, content, draw, facts)
    merge(store, shards(what))
    found = held(store)
    return Made(
        store,
        Counter((label, digest(pixels(encoded))) for label, encoded in found),
        Counter(found),
    )
