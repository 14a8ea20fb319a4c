"""The rejects of a shard: the images that were tried and not kept, as parquet beside its tar."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FIELDS = (
    ("key", pa.string()),
    ("identity", pa.int64()),
    ("slot", pa.int32()),
    ("attempt", pa.int32()),
    ("reason", pa.string()),
    ("score", pa.float32()),
    ("cosine", pa.float32()),
)
SOURCE = ("source", pa.string())  # of prepared images: what they were called


def write_rejects(
    path: Path, rows: Sequence[Mapping[str, Any]], *further: tuple[str, pa.DataType]
) -> None:
    """Write the rejected images of a shard.

    Args:
        path: of the parquet file.
        rows: one an image: values by the names of `FIELDS` and of the further ones; a name that
            is missing is null.
        further: fields beyond `FIELDS`, name and type.
    """
    schema = pa.schema([*FIELDS, *further])
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), path)
