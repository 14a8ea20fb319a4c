"""The rejects of a shard: facts about its rejected images, as parquet beside its tar."""

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
SOURCE = ("source", pa.string())  # the original name of a prepared image


def write_rejects(
    path: Path, rows: Sequence[Mapping[str, Any]], *further: tuple[str, pa.DataType]
) -> None:
    """Write the rejected images of a shard.

    Args:
        path: the parquet file.
        rows: for each image its values by the names of `FIELDS` and `further`; a missing name is
            null.
        further: (name, type) of fields beyond `FIELDS`.
    """
    schema = pa.schema([*FIELDS, *further])
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), path)
