"""Parquet as the Hugging Face Hub keeps image datasets: a column of images, one of labels."""

import json
from collections import OrderedDict
from typing import IO, Any

from factory.datasets.store import Store
from factory.prepare.labels import label_text
from factory.prepare.listing import PARQUET, Item, Labelling, Listing, by_label, listed, shown
from factory.recipe import InputError

SUFFIX = ".parquet"
IMAGES = ("image", "jpg", "png", "img", "webp")
LABELS = ("label", "labels", "cls", "identity", "identity_id", "person", "class", "target")
ROWS = 1 << 16  # labels read together
GROUPS = 4  # row groups held at once


def list_parquet(store: Store, files: list[str], how: Labelling, ignored: int) -> Listing:
    """List the images of parquet files.

    Raises:
        InputError: a file is damaged or lacks images or labels.
    """
    pairs: list[tuple[str, Item]] = []
    column = how.label.partition(":")[2]
    for name in files:
        what = f"SOURCE {store.url}/{name}"
        with store.open_random(name) as file:
            table = _opened(file, what)
            _, label = _columns(table.schema_arrow, column, what)
            names = _class_names(table.schema_arrow, label)
            row = 0
            try:
                for batch in table.iter_batches(ROWS, columns=[label]):
                    for value in batch.column(0).to_pylist():
                        if names and isinstance(value, int) and 0 <= value < len(names):
                            value = names[value]
                        text = label_text(value, f"{what}: {label} of row {row}")
                        pairs.append((text, Item(name, f"{row:09d}", row)))
                        row += 1
            except (OSError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                raise _damaged(what, error) from None
    sizes = [store.size(name) for name in files]
    return listed(store, PARQUET, by_label(pairs), ignored, sizes)


def _opened(file: IO[bytes], what: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(what, error) from None


def _damaged(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what}: no parquet file that can be read ({shown(str(error))}); accepted are whole ones"
    )


def _columns(schema: Any, wanted: str, what: str) -> tuple[str, str]:
    """Return the columns of images and labels."""
    names = schema.names
    image = next((name for name in IMAGES if name in names), None)
    label = wanted or next((name for name in LABELS if name in names), None)
    if image is None or label not in names or label is None:
        lacks = "images" if image is None else f"labels ({wanted})" if wanted else "labels"
        raise InputError(
            f"{what}: no column of {lacks} among {', '.join(map(shown, names))}; accepted are "
            f"image and label, or --label column:NAME"
        )
    return image, label


def _class_names(schema: Any, label: str) -> list[str]:
    """Return the names of a ClassLabel's integers, as `datasets` keeps them in the metadata."""
    try:
        kept = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = kept["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else []


class ParquetReader:
    """Reads images of one parquet file by row, holding the last row groups."""

    def __init__(self, file: IO[bytes], what: str) -> None:
        """Read the file's footer."""
        self.what = what
        self._table = _opened(file, what)
        self._image, self._starts = _columns_image(self._table, what), [0]
        for number in range(self._table.num_row_groups):
            rows = self._table.metadata.row_group(number).num_rows
            self._starts.append(self._starts[-1] + rows)
        self._groups: OrderedDict[int, Any] = OrderedDict()

    def read(self, row: int) -> bytes:
        """Return the image of a row; InputError where its file is damaged."""
        from bisect import bisect_right

        number = bisect_right(self._starts, row) - 1
        if number not in self._groups:
            if len(self._groups) >= GROUPS:
                self._groups.popitem(last=False)
            try:
                read = self._table.read_row_group(number, columns=[self._image])
            except (OSError, ValueError) as error:
                raise _damaged(self.what, error) from None
            self._groups[number] = read.column(0)
        value = self._groups[number][row - self._starts[number]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        return data if isinstance(data, bytes) else b""


def _columns_image(table: Any, what: str) -> str:
    found = next((name for name in IMAGES if name in table.schema_arrow.names), None)
    if found is None:
        raise InputError(f"{what}: no column of images any more")
    return found
