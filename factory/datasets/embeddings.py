"""Embeddings beside a dataset's shards: one parquet file for each shard and recognizer.

`embeddings/SHA256/SHARD.parquet`, where SHA256 is that of the recognizer's weights, has the columns
`key` and `embedding` (raw, float32) in the order of the shard. Its metadata states the recognizer's
name and the sha256 of the tar that it was computed from.
"""

import io
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np

from factory.datasets.store import Store
from factory.recipe import InputError

FOLDER = "embeddings"
SUFFIX = ".parquet"


class Embedder(Protocol):
    """The properties of a recognizer that datasets need."""

    @property
    def size(self) -> int:
        """Return the height and width of its images in pixels."""
        ...

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Return raw embeddings, float32 [B, D], of uint8 [B, S, S, 3] RGB images."""
        ...


def embeddings_file(recognizer_sha256: str, shard: str) -> str:
    """Return the name of the file with a shard's embeddings under a recognizer."""
    return f"{FOLDER}/{recognizer_sha256}/{shard}{SUFFIX}"


def shard_of(name: str) -> str:
    """Return the name of the shard whose embeddings a file of the store holds."""
    return PurePosixPath(name).name.removesuffix(SUFFIX)


def write_embeddings(
    store: Store,
    shard: str,
    tar_sha256: str,
    recognizer: tuple[str, str],
    keys: Sequence[str],
    embeddings: np.ndarray,
) -> None:
    """Write the embeddings of one shard.

    Args:
        store: the dataset.
        shard: the shard's name.
        tar_sha256: the sha256 of the shard's tar, from its manifest.
        recognizer: the recognizer's name and the sha256 of its weights.
        keys: keys of the N samples, in the order of the shard.
        embeddings: raw embeddings, float32 [N, D].
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, sha256 = recognizer
    rows = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(embeddings, np.float32).ravel()), embeddings.shape[1]
    )
    table = pa.table({"key": pa.array(list(keys), pa.string()), "embedding": rows})
    facts = {"recognizer": name, "recognizer_sha256": sha256, "tar_sha256": tar_sha256}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(facts), sink)
    store.write(embeddings_file(sha256, shard), sink.getvalue())


def read_embeddings(
    store: Store, shard: str, tar_sha256: str, recognizer_sha256: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the keys and raw embeddings, float32 [N, D], of a shard, in the shard's order.

    Raises:
        FileNotFoundError: the embeddings are not computed yet.
        InputError: the embeddings were computed from another tar.
    """
    import pyarrow.parquet as pq

    name = embeddings_file(recognizer_sha256, shard)
    table = pq.read_table(io.BytesIO(store.read(name)))
    stated = (table.schema.metadata or {}).get(b"tar_sha256", b"").decode()
    if stated != tar_sha256:
        raise InputError(
            f"{store.url}/{name}: computed from a tar of sha256 {stated[:16]}, the shard's is "
            f"{tar_sha256[:16]}; delete the file and compute it again"
        )
    column = table.column("embedding").combine_chunks()
    width = column.type.list_size
    return tuple(table.column("key").to_pylist()), column.flatten().to_numpy().reshape(-1, width)
