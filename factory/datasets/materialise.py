"""Materialising: a composition becomes a dataset of its own, globally shuffled, for any reader.

Samples have positions instead of identities and slots. Shard pA-B holds positions [A, B) of an
order that the composition's seed draws, and the key of a sample is its position.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory import stops
from factory.datasets.claim import CLAIM, Claim, claimed
from factory.datasets.composition import (
    Composition,
    Rows,
    load_composition,
    local_shards,
    read_rows,
)
from factory.datasets.index import Reader
from factory.datasets.manifest import (
    COMPOSED,
    DatasetManifest,
    ShardManifest,
    commit_shard,
    committed,
    merge,
)
from factory.datasets.provenance import sha256_file
from factory.datasets.scratch import scratch
from factory.datasets.store import Store
from factory.datasets.tar import Sample, write_tar
from factory.plan import Slice, position_key, slices
from factory.seeding import generator, seed64

MATERIALISED = Claim(CLAIM, "the dataset", "--materialise")


def materialise(
    composition: Store,
    to: Store,
    say: Callable[[str], None] = lambda line: None,
) -> DatasetManifest:
    """Write a composition's images, with repeats, as a dataset that does not need the pools.

    Sidecars keep their fields and get `label`, `pool` and `source_key`. Committed shards are kept,
    so that the same command resumes. Images are streamed; memory holds the index and its order.

    Args:
        composition: folder of a composition.
        to: folder of the dataset; the caller holds `to.lock`.
        say: receives a line of progress for each shard.

    Raises:
        InputError: there is no composition, a pool has changed, or `to` holds something else.
    """
    made = load_composition(composition)
    rows = read_rows(composition, made)
    planned = list(slices(made.images_with_repeats, made.recipe["shard_images"]))
    _claim(to, made)
    order = shuffled(rows, int(made.recipe["seed"]))
    paths, reader = local_shards(made, rows), Reader()
    done = committed(to)
    with stops.keeping(lambda: f"{len(committed(to))} of {len(planned)} shards are committed"):
        for number, piece in enumerate(planned, start=1):
            if piece.name in done:
                continue
            say(f"shard {number} of {len(planned)}")
            samples = (
                (position_key(n), _sample(rows, order[n], paths, reader))
                for n in range(piece.start, piece.stop)
            )
            _commit(to, piece, samples, made)
    reader.close()
    return merge(to, planned)


def shuffled(rows: Rows, seed: int) -> np.ndarray:
    """Return the row at each position, int64 [images with repeats], in the order of `seed`."""
    repeated = np.repeat(np.arange(len(rows)), rows.repeat)
    return repeated[generator(seed64(seed, "materialise")).permutation(len(repeated))]


def _sample(rows: Rows, row: int, paths: list[Path], reader: Reader) -> dict[str, bytes]:
    path = paths[rows.shard[row]]
    image = reader.read(path, int(rows.offset[row]), int(rows.size[row]))
    label = int(rows.label[row])
    sidecar: dict[str, Any] = {}
    if rows.sidecar_size[row]:
        where = int(rows.sidecar_offset[row]), int(rows.sidecar_size[row])
        sidecar = json.loads(reader.read(path, *where))
    sidecar["label"] = label
    sidecar["pool"] = rows.pools[rows.pool[row]]
    sidecar["source_key"] = bytes(rows.key[row]).decode()
    return {
        "png" if image.startswith(b"\x89PNG") else "jpg": image,
        "cls": b"%d" % label,
        "json": json.dumps(sidecar, sort_keys=True).encode(),
    }


def _claim(to: Store, made: Composition) -> None:
    claimed(to, made.recipe["kind"], MATERIALISED)  # names another kind, not all of its fields
    claim = {
        "recipe": made.recipe,
        "grown": [],
        "content_digest": made.content_digest,
        "bank_digest": "",
        "images": made.images_with_repeats,
        "licence": made.licence,
        "digitalSourceType": made.digital_source_type,
        "models": [model.model_dump(mode="json") for model in made.models],
    }
    if MATERIALISED.check(to, claim) is None:
        MATERIALISED.write(to, claim)


def _commit(to: Store, piece: Slice, samples: Iterator[Sample], made: Composition) -> None:
    with scratch() as folder:
        tar, rejects = folder / "shard.tar", folder / "rejects.parquet"
        sha256, size = write_tar(tar, samples)
        pq.write_table(pa.table({"key": pa.array([], pa.string())}), rejects)
        manifest = ShardManifest(
            name=piece.name,
            sha256=sha256,
            bytes=size,
            planned=piece.samples,
            kept=piece.samples,
            reasons={},
            missing=(),
            seconds={},
            content_digest=made.content_digest,
            system=COMPOSED,
            versions={},
            rejects_sha256=sha256_file(rejects),
        )
        commit_shard(to, tar, rejects, manifest)
