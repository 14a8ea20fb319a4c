"""A composition on disk: an index over the shards of its pools, and a description.

OUT/index.parquet      one row for each image: its label, its pool and its place there
OUT/composition.json   the recipe, the pools' digests and counts; it is written last, as the commit
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from factory.datasets.claim import COMPOSITION, read_claim
from factory.datasets.index import Copies, column
from factory.datasets.manifest import DatasetManifest, Sha256, first_fault, load_manifest, merged
from factory.datasets.provenance import Model
from factory.datasets.store import Store
from factory.recipe import InputError, Natural, Part, Total

INDEX = "index.parquet"
SCHEMA = pa.schema(
    [
        pa.field("label", pa.int64(), nullable=False),
        pa.field("pool", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("identity", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("sidecar_offset", pa.int64(), nullable=False),
        pa.field("sidecar_size", pa.int32(), nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("cosine", pa.float32()),
    ]
)


class Removed(Part):
    """How many of a pool's images a composition left out at first, by reason."""

    below_band: Natural = 0
    above_band: Natural = 0
    no_centre: Natural = 0
    in_small_identities: Natural = 0


class Taken(Part):
    """What a composition takes of a pool; only `images_with_repeats` and `share` count repeats."""

    url: str
    content_digest: str
    system: str
    licence: str
    digital_source_type: str
    real: bool
    offered_identities: Natural
    offered_images: Natural
    removed: Removed
    share: Natural | None
    identities: Natural
    images: Natural
    repeat: Natural
    images_with_repeats: Total
    mean_cosine: float | None


class Composition(Part):
    """The content of a composition's `composition.json`."""

    recipe: dict[str, Any]
    content_digest: str
    index_sha256: Sha256
    identities: Natural
    images: Natural
    images_with_repeats: Total
    image_size: Natural
    pools: dict[str, Taken]
    models: tuple[Model, ...]
    licence: str = Field(description="The strictest of the pools' and their models'.")
    digital_source_type: str = Field(description="Of the pools; joined by AND if they differ.")


@dataclass(frozen=True)
class Rows:
    """The N images of a composition, in the order of the pools' names and then of their keys.

    Attributes:
        label: int64 [N], contiguous from 0.
        pool: int32 [N], row of `pools`.
        pools: names of the pools.
        shard: int32 [N], row of `shards`.
        shards: (row of `pools`, name) of each shard that holds one of the images.
        key: bytes [N], the image's key in its pool, ASCII (numpy's S type).
        identity: int64 [N], the image's label in its pool.
        offset, size: place and size of the image in its tar, in bytes.
        sidecar_offset, sidecar_size: the same of its JSON sidecar; size 0 if it has none.
        repeat: int32 [N], how often an epoch holds the image.
        cosine: float32 [N], to the identity's centre; NaN without a band.
    """

    label: np.ndarray
    pool: np.ndarray
    pools: tuple[str, ...]
    shard: np.ndarray
    shards: tuple[tuple[int, str], ...]
    key: np.ndarray
    identity: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    sidecar_offset: np.ndarray
    sidecar_size: np.ndarray
    repeat: np.ndarray
    cosine: np.ndarray

    def __len__(self) -> int:
        """Return N."""
        return len(self.label)


def is_composition(store: Store) -> bool:
    """Tell whether a folder holds a composition."""
    return store.exists(COMPOSITION)


def source_digest(store: Store) -> str:
    """Return the content digest of a dataset, finished or not, or of a composition.

    Raises:
        InputError: there is neither.
    """
    if is_composition(store):
        return load_composition(store).content_digest
    return str(read_claim(store)["content_digest"])


def source_licence(store: Store) -> str:
    """Return the licence of a dataset, finished or not, or of a composition.

    Raises:
        InputError: there is neither.
    """
    if is_composition(store):
        return load_composition(store).licence
    return merged(read_claim(store), ()).licence


def load_composition(store: Store) -> Composition:
    """Read a folder's `composition.json`; InputError if it is missing or malformed."""
    if not store.exists(COMPOSITION):
        raise InputError(f"{store.url}: no composition there ({COMPOSITION} is missing)")
    try:
        return Composition.model_validate_json(store.read(COMPOSITION))
    except ValidationError as error:
        raise InputError(f"{store.url}/{COMPOSITION}: {first_fault(error)}") from None


def read_rows(store: Store, composition: Composition) -> Rows:
    """Read the index of a composition; InputError if its sha256 is not the stated one."""
    data = store.read(INDEX) if store.exists(INDEX) else b""
    if hashlib.sha256(data).hexdigest() != composition.index_sha256:
        raise InputError(
            f"{store.url}/{INDEX}: sha256 is not the one {COMPOSITION} states; compose it again"
        )
    table = pq.read_table(io.BytesIO(data))
    pool, pools = _coded(table["pool"])
    shard, names = _coded(table["shard"])
    pairs, coded = np.unique(pool.astype(np.int64) * len(names) + shard, return_inverse=True)
    shards = tuple((int(pair) // len(names), names[int(pair) % len(names)]) for pair in pairs)
    plain = {
        name: column(table, name)
        for name in SCHEMA.names
        if name not in ("pool", "shard", "cosine")
    }
    cosine = table["cosine"].to_numpy()
    return Rows(
        pool=pool,
        pools=tuple(pools),
        shard=coded.astype(np.int32),
        shards=shards,
        cosine=cosine.astype(np.float32),
        **plain,
    )


def local_shards(composition: Composition, rows: Rows) -> list[Path]:
    """Return a local path of each of `rows.shards`; remote ones are copied to the cache once.

    Raises:
        InputError: a pool is now another dataset, or a shard is gone.
    """
    paths: dict[tuple[int, str], Path] = {}
    for number, name in enumerate(rows.pools):
        taken = composition.pools[name]
        used = [shard for pool, shard in rows.shards if pool == number]
        manifest = pool_manifest(name, taken, used)
        held = {entry.name: entry.sha256 for entry in manifest.shards}
        copied = Copies(Store(taken.url), held).fetch(used)
        paths |= {(number, shard): path for shard, path in zip(used, copied, strict=True)}
    return [paths[shard] for shard in rows.shards]


def pool_manifest(name: str, taken: Taken, used: Iterable[str]) -> DatasetManifest:
    """Return the manifest of a composition's pool, after a check that the pool has not changed.

    Args:
        name: the pool's name, for errors.
        taken: what the composition states of the pool.
        used: names of the shards that the pool must have.

    Raises:
        InputError: the pool is now another dataset, or a shard is gone.
    """
    store = Store(taken.url)
    manifest = load_manifest(store)
    if manifest.content_digest != taken.content_digest:
        raise InputError(
            f"pool {name} of the composition: {store.url} has changed since it was composed (its "
            f"content digest is {manifest.content_digest} now, {taken.content_digest} then)"
        )
    held = {entry.name for entry in manifest.shards}
    gone = next((shard for shard in used if shard not in held), None)
    if gone is not None:
        raise InputError(f"composition's pool {name}: {store.url} has no shard {gone} any more")
    return manifest


def _coded(values: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Return the codes of a column, int32 [N], and the texts that the codes stand for."""
    whole = values.unify_dictionaries().combine_chunks()
    return whole.indices.to_numpy().astype(np.int32), whole.dictionary.to_pylist()
