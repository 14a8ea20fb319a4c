"""Parquet files for the Hugging Face `datasets` library and the Hub's viewer."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from factory.export.about import About
from factory.export.output import Output
from factory.export.spool import Spooled
from factory.export.wds import shard_size

ROWS = 256  # rows of a row group, which a reader holds in memory

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"dtype": "int64", "_type": "Value"},
    "sidecar": {"dtype": "string", "_type": "Value"},
}


def write_hf(items: Iterator[Spooled], about: About, out: Output) -> None:
    """Write `data/train-00000-of-NNNNN.parquet`, ... with image, label and sidecar as JSON text.

    The schema's metadata says that `image` is an image, so that no code or card is needed to read
    it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("sidecar", pa.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
    )
    each = shard_size(about.images)
    files = -(-about.images // each)
    for number in range(files):
        left = islice(items, each)
        name = f"data/train-{number:05d}-of-{files:05d}.parquet"
        # without a dictionary, which would only repeat the images
        with (
            out.open(name) as file,
            pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer,
        ):
            while rows := [_row(item, about.extension) for item in islice(left, ROWS)]:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _row(item: Spooled, extension: str) -> dict[str, Any]:
    path = f"{item.label:07d}_{item.number:04d}.{extension}"
    return {
        "image": {"bytes": item.encoded, "path": path},
        "label": item.label,
        "sidecar": item.sidecar.decode(),
    }
