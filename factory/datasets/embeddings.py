"""Embeddings beside a dataset's shards: computed once, one parquet file a shard and recognizer.

`embeddings/SHA256/SHARD.parquet`, named by the sha256 of the recognizer's weights, has the columns
`key` and `embedding` (raw, float32) in the order of the shard, and states the recognizer's name and
the sha256 of the tar it was computed from.
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
    """What is asked of a recognizer."""

    @property
    def size(self) -> int:
        """Height and width in pixels of the images it takes."""
        ...

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Return raw embeddings, float32 [B, D], of uint8 [B, S, S, 3] RGB images."""
        ...


def embeddings_file(recognizer_sha256: str, shard: str) -> str:
    """Return where the embeddings of a shard under a recognizer lie in its store."""
    return f"{FOLDER}/{recognizer_sha256}/{shard}{SUFFIX}"


def shard_of(name: str) -> str:
    """Return the shard whose embeddings a file of the store holds."""
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
        shard: its name.
        tar_sha256: of the shard's tar, as its manifest states it.
        recognizer: name and sha256 of the weights.
        keys: of the N samples, in the order of the shard.
        embeddings: float32 [N, D], raw.
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
    """Return keys and raw embeddings, float32 [N, D], of one shard, in its order.

    Raises:
        FileNotFoundError: they were not computed.
        InputError: they were computed from another tar.
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
