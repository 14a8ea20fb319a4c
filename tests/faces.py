"""Small labelled datasets for tests: each identity is a few coloured blobs at places of its own."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from factory.datasets.claim import write_claim
from factory.datasets.manifest import COMMIT, TAR, merge, shard_file
from factory.datasets.store import Store
from factory.datasets.tar import write_tar
from factory.generation.identities import Bank, save_block
from factory.plan import Shard, sample_key, shards
from factory.recipe import GenerateRecipe, parse

BLOBS = 4


def face(identity: int, slot: int, size: int = 32, world: int = 0) -> np.ndarray:
    """Return uint8 [size, size, 3]: the identity's blobs, moved and lit a little by the slot."""
    own = np.random.default_rng((world, identity))
    places, radii = own.uniform(0.2, 0.8, (BLOBS, 2)), own.uniform(0.08, 0.2, BLOBS)
    colours = own.uniform(0, 255, (BLOBS, 3))
    varied = np.random.default_rng((world, identity, slot))
    shift, light = varied.normal(0, 0.03, 2), varied.uniform(0.8, 1.2)
    y, x = np.mgrid[:size, :size] / size
    image = np.full((size, size, 3), 120.0)
    for place, radius, colour in zip(places + shift, radii, colours, strict=True):
        near = np.exp(-(((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * radius**2)))
        image += near[..., None] * (colour - image)
    image = image * light + varied.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def make_dataset(
    folder: Path,
    identities: int,
    images_each: int,
    size: int = 32,
    world: int = 0,
    per: int = 8,
    digest: str = "0" * 16,
    lost: tuple[tuple[int, int], ...] = (),
    truth: Callable[[int, int], dict[str, float]] | None = None,
) -> str:
    """Write a dataset of committed shards, `per` identities each, and return its address."""
    store = Store(folder)
    for start in range(0, identities, per):
        shard = Shard(start, min(start + per, identities), 0, images_each)
        path = folder / f"{shard.name}.tmp"
        folder.mkdir(parents=True, exist_ok=True)
        there = [slot for slot in shard.slots if slot not in lost]
        missing = [sample_key(*slot) for slot in shard.slots if slot in lost]
        sha256, size_bytes = write_tar(path, (_sample(i, s, size, world, truth) for i, s in there))
        store.put(path, shard_file(shard.name, TAR))
        path.unlink()
        manifest = {
            "name": shard.name,
            "sha256": sha256,
            "bytes": size_bytes,
            "planned": shard.samples,
            "kept": len(there),
            "reasons": {},
            "missing": missing,
            "seconds": {},
            "content_digest": digest,
            "system": "blobs",
            "versions": {},
            "rejects_sha256": hashlib.sha256(b"").hexdigest(),
        }
        store.write(shard_file(shard.name, COMMIT), json.dumps(manifest).encode())
    return str(folder)


def make_pool(folder: Path, identities: int, images_each: int, world: int = 0, **how: Any) -> str:
    """Write a finished dataset, with claim and manifest, and return its address.

    Its content digest follows from `world`, which decides what its people look like. `source` is
    that of its identities, and `candidates` are those that its bank kept. The rest of `how` goes to
    `make_dataset`, but for `licence`.
    """
    digest, per = f"{world:016x}", how.pop("per", 8)
    source, candidates = how.pop("source", "blobs"), how.pop("candidates", ())
    licence = how.pop("licence", "CC0-1.0")
    make_dataset(folder, identities, images_each, world=world, per=per, digest=digest, **how)
    recipe = parse(
        {
            "kind": "generate",
            "name": "blobs",
            "seed": 1,
            "system": "blobs",
            "licence": licence,
            "image": {"size": how.get("size", 32)},
            "identities": {"count": identities, "images_each": images_each, "source": source},
            "shard": {"identities": per},
            "workers": {"max": 1},
            "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
        }
    )
    assert isinstance(recipe, GenerateRecipe)
    store = Store(folder)
    if candidates:
        kept = np.array(candidates)
        save_block(
            store, Bank(np.eye(len(kept), dtype="f4"), kept, candidates[-1] + 1, {}), 0, digest
        )
    write_claim(store, recipe, digest, ())
    merge(store, shards(recipe))
    return str(folder)


def _sample(
    identity: int,
    slot: int,
    size: int,
    world: int,
    truth: Callable[[int, int], dict[str, float]] | None,
) -> tuple[str, dict[str, bytes]]:
    image = face(identity, slot, size, world)
    jpeg = simplejpeg.encode_jpeg(image, quality=95, colorspace="RGB", colorsubsampling="444")
    sidecar: dict[str, Any] = {"identity": identity, "slot": slot}
    if truth is not None:
        sidecar["truth"] = truth(identity, slot)
    parts = {"jpg": jpeg, "cls": b"%d" % identity, "json": json.dumps(sidecar).encode()}
    return sample_key(identity, slot), parts
