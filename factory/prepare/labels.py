"""Labels that stand in a list beside the images: `.lst`, `list.txt`, CSV, TSV or JSON.

A line has a path and a label, in an order that the lines themselves show, and perhaps the number
of the record before them: im2rec's `.lst` is number, label, path; DCFace's `list.txt` is number,
path, label; CelebA's is path, label. The first line may name the columns.
"""

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

from factory.datasets.store import Store
from factory.prepare.listing import is_image, shown
from factory.recipe import InputError, public

PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_name"),
    *("img", "img_path", "image_id", "fname"),
)
LABELS = (
    *("label", "labels", "identity", "identity_id", "class", "class_id", "person", "person_id"),
    *("subject", "subject_id", "id", "name", "target"),
)
NUMBERS = ("index", "idx", "key", "number", "record")
LISTS = (".lst", ".txt", ".csv", ".tsv", ".json")
ACCEPTED_LIST = (
    "accepted are lines of a path and a label (CSV, TSV, .lst, .txt), with or without a line that "
    "names the columns, or JSON {path: label}; FILE.csv?path=COLUMN&label=COLUMN names columns"
)
MOST_BYTES = 1 << 31
LONGEST_LABEL = 1000  # characters
LOOKED_AT = 200  # lines from which the columns are told


@dataclass(frozen=True)
class Row:
    """One line of a list: the number of a record, or None; a path; a label."""

    key: int | None
    path: str
    label: str


@dataclass(frozen=True)
class Labels:
    """A list of labels.

    Attributes:
        what: names the list in messages.
        rows: its lines.
    """

    what: str
    rows: tuple[Row, ...]

    def matched(self, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Return the label of each image that the list names, and lines for the user.

        A path means the image of that name; else the only one whose name ends so, or whose name
        its own end is; a suffix may be missing.

        Raises:
            InputError: the list names none of the images, or one of them with two labels.
        """
        there, ends = set(names), _Ends(names)
        found: dict[str, str] = {}
        absent: list[str] = []
        for row in self.rows:
            path = _plain(row.path)
            name = path if path in there else ends.find(path)
            if name is None:
                absent.append(row.path)
            elif found.setdefault(name, row.label) != row.label:
                raise InputError(
                    f"{self.what}: {shown(name)} has the labels {shown(found[name])} and "
                    f"{shown(row.label)}; accepted is one"
                )
        if not found:
            raise InputError(
                f"{self.what}: none of its {len(self.rows):,} paths, as "
                f"{shown(self.rows[0].path)}, is one of the {len(names):,} images"
                f"{', as ' + shown(names[0]) if names else ''}; accepted are paths below SOURCE"
            )
        notes = [f"labels are those of {self.what}"]
        if absent:
            notes.append(f"{len(absent):,} paths of the list, as {shown(absent[0])}, are not there")
        if left := next((name for name in names if name not in found), None):
            count = len(names) - len(found)
            notes.append(f"{count:,} images, as {shown(left)}, are not in the list: left out")
        return found, notes

    def of_records(self, keys: Sequence[int], what: str) -> tuple[list[str], list[str]]:
        """Return the label of each record, and lines for the user.

        Lines with a number mean the record of that number, others the records in their order.

        Raises:
            InputError: a record has no line, or the list has another number of lines.
        """
        if all(row.key is not None for row in self.rows):
            by_key = {row.key: row for row in self.rows}
            if len(by_key) < len(self.rows):
                twice = Counter(row.key for row in self.rows).most_common(1)[0][0]
                raise InputError(
                    f"{self.what}: more than one line of record {twice}; accepted is one of each"
                )
            lost = next((key for key in keys if key not in by_key), None)
            if lost is not None:
                raise InputError(
                    f"{self.what}: no line of record {lost} of {what}; accepted is a list of all "
                    f"{len(keys):,} records"
                )
            rows = [by_key[key] for key in keys]
        elif len(self.rows) == len(keys):
            rows = list(self.rows)
        else:
            raise InputError(
                f"{self.what}: {len(self.rows):,} lines, {what} has {len(keys):,} images; accepted "
                "is a line for each, or lines that begin with a record's number"
            )
        labels, taken = [row.label for row in rows], "labels"
        folders = [_folder(row.path) for row in rows]
        if len(set(labels)) == 1 and len(set(folders)) > 1 and all(folders):
            labels = folders
        if labels == folders:
            taken = "folders"
        return labels, [f"labels are the {taken} of {self.what}"]


class _Ends:
    """Finds names by their ends."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self._stems = names, {}

    def find(self, path: str) -> str | None:
        """Return the only name that ends as a path does, or the other way round."""
        if not self._stems:
            stems: dict[str, list[str]] = defaultdict(list)
            for name in self.names:
                stems[_stem(name)].append(name)
            self._stems = stems
        wanted = path if is_image(path) else ""
        alike = [
            name
            for name in self._stems.get(_stem(path), ())
            if _ends(name if wanted else name.rpartition(".")[0], path)
        ]
        return alike[0] if len(alike) == 1 else None


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] if is_image(name) else name


def _ends(name: str, path: str) -> bool:
    return name == path or name.endswith(f"/{path}") or path.endswith(f"/{name}")


def _plain(path: str) -> str:
    parts = path.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def load_labels(reference: str) -> Labels:
    """Read the list that `--label` names: a local path or URL, with columns after a `?`.

    Raises:
        InputError: no such file, or it is no list.
    """
    place, _, query = reference.partition("?")
    columns = dict(parse_qsl(query))
    remote = "://" in reference
    wanted = {name: columns.pop(name, "") for name in ("path", "label")}
    address = place + ("?" + query if remote and columns else "")
    folder, _, name = place.rpartition("/")
    what = f"--label {public(shown(reference))}"
    try:
        store = Store((folder or ("/" if place.startswith("/") else ".")) + address[len(place) :])
        known = bool(name) and store.exists(name)
    except (OSError, ValueError):
        known = False
        store = Store(".")
    if not known:
        raise InputError(
            f"{what}: no such file; accepted are cls, txt, json:FIELD, column:NAME, folder, or a "
            "file that lists paths and labels"
        )
    return read_labels(store, name, what, wanted)


def read_labels(store: Store, name: str, what: str, wanted: dict[str, str] | None = None) -> Labels:
    """Read a list of labels; InputError where it is none.

    Args:
        store: where it lies.
        name: of the file.
        what: names the list in messages.
        wanted: names of the columns `path` and `label`; empty ones are found.
    """
    if store.size(name) > MOST_BYTES:
        raise InputError(f"{what}: {store.size(name):,} bytes; accepted are {MOST_BYTES:,}")
    try:
        text = store.read(name).decode("utf-8-sig")
        if name.lower().endswith(".json"):
            rows = list(json_rows(json.loads(text), what))
        else:
            rows = list(_rows(text, name, what, wanted or {}))
    except (UnicodeDecodeError, csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what}: {type(error).__name__}: {error}; {ACCEPTED_LIST}") from None
    if not rows:
        raise InputError(f"{what}: it names no image; {ACCEPTED_LIST}")
    return Labels(what, tuple(rows))


def json_rows(content: Any, what: str) -> Iterator[Row]:
    """Yield the rows of {path: label}, of [[path, label], ...], or of {"labels": either}."""
    if isinstance(content, dict) and isinstance(content.get("labels"), dict | list):
        content = content["labels"]
    pairs = list(content.items()) if isinstance(content, dict) else content
    if not isinstance(pairs, list):
        raise InputError(f"{what}: its labels are {type(pairs).__name__}; {ACCEPTED_LIST}")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise InputError(f"{what}: {shown(repr(pair))} is no path and label; {ACCEPTED_LIST}")
        yield Row(None, pair[0], label_text(pair[1], f"{what}: {shown(pair[0])}"))


def label_text(value: Any, what: str) -> str:
    """Return a label as text; InputError where it is neither a name nor an integer."""
    if isinstance(value, str) and 0 < len(value.strip()) <= LONGEST_LABEL:
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < 1 << 63:
            return str(value)
    elif isinstance(value, float) and value.is_integer() and 0 <= value < 1 << 53:
        return str(int(value))
    raise InputError(
        f"{what} is {shown(repr(value)[: 2 * LONGEST_LABEL])}; accepted is a name or an integer, 0 "
        "or more"
    )


def _rows(text: str, name: str, what: str, wanted: dict[str, str]) -> Iterator[Row]:
    lines = list(_cells(text, name.lower()))
    if not lines:
        return
    head = [cell.strip().lower() for cell in lines[0][1]]
    named = [wanted.get("path", "").lower(), wanted.get("label", "").lower()]
    missing = next((column for column in named if column and column not in head), None)
    if missing is not None:
        raise InputError(
            f"{what}: no column {missing!r}; its first line has {', '.join(map(shown, head))}"
        )
    if any(named) or (not any(map(is_image, head)) and set(head) & {*PATHS, *LABELS}):
        lines = lines[1:]
        key, path, label = _named_columns(head, lines, named, what)
    else:
        key, path, label = _found_columns(lines, what)
    width = max(path, *(column for column in (key, label) if column is not None), 0)
    for number, cells in lines:
        if len(cells) <= width:
            raise InputError(
                f"{what}: line {number} has {len(cells)} of {width + 1} columns; {ACCEPTED_LIST}"
            )
        at = f"{what}: the label of line {number}"
        yield Row(
            None if key is None else int(cells[key]),
            cells[path],
            _folder(cells[path]) if label is None else label_text(cells[label], at),
        )


def _cells(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line that is not empty."""
    first = text[: 1 << 16].partition("\n")[0]
    if name.endswith((".tsv", ".lst")) or (not name.endswith(".csv") and "\t" in first):
        mark = "\t"
    elif name.endswith(".csv") or "," in first:
        mark = ";" if ";" in first and "," not in first else ","
    else:
        mark = ""
    if mark:
        for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=mark), 1):
            if any(cell.strip() for cell in cells):
                yield number, [cell.strip() for cell in cells]
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.split()


def _named_columns(
    head: list[str], lines: list[tuple[int, list[str]]], named: list[str], what: str
) -> tuple[int | None, int, int]:
    path = head.index(named[0]) if named[0] else _first(head, PATHS)
    label = head.index(named[1]) if named[1] else _first(head, LABELS, path)
    if path is None:
        path = _path_column(lines)
    if path is None or label is None:
        lacks = "paths" if path is None else "labels"
        raise InputError(
            f"{what}: no column of {lacks} among {', '.join(map(shown, head))}; {ACCEPTED_LIST}"
        )
    key = _first(head, NUMBERS)
    if key in (path, label) or (key is not None and not _numbers(lines, key)):
        key = None
    return key, path, label


def _first(head: list[str], names: Sequence[str], but: int | None = None) -> int | None:
    return next(
        (head.index(name) for name in names if name in head and head.index(name) != but), None
    )


def _found_columns(
    lines: list[tuple[int, list[str]]], what: str
) -> tuple[int | None, int, int | None]:
    """Return the columns of number, path and label of lines that do not name them.

    There is no label in lines of a record's number and a path (DCFace's `list.txt`): the path's
    folder is it.
    """
    path = _path_column(lines)
    width = min(len(cells) for _, cells in lines)
    if path is None or width < 2:
        raise InputError(
            f"{what}: line {lines[0][0]} is {shown(' '.join(lines[0][1]))!r}; {ACCEPTED_LIST}"
        )
    others = [column for column in range(width) if column != path]
    if len(others) > 1:
        key = others.pop(0) if _numbers(lines, 0) else None
        return key, path, others[0]
    numbered = others[0] < path and _numbers(lines, others[0])
    if numbered and len({cells[others[0]] for _, cells in lines}) == len(lines) > 1:
        folders = {_folder(cells[path]) for _, cells in lines}
        if len(folders) > 1 and "" not in folders:
            return others[0], path, None
    return None, path, others[0]


def _numbers(lines: list[tuple[int, list[str]]], column: int) -> bool:
    """Tell whether a column holds whole numbers alone."""
    return all(
        len(cells) > column and re.fullmatch(r"[0-9]{1,18}", cells[column]) for _, cells in lines
    )


def _folder(path: str) -> str:
    return PurePosixPath(_plain(path)).parent.name


def _path_column(lines: list[tuple[int, list[str]]]) -> int | None:
    """Return the column in which most of the first lines have a path."""
    looked = [cells for _, cells in lines[:LOOKED_AT]]
    width = min((len(cells) for cells in looked), default=0)
    for test in (is_image, lambda cell: "/" in cell):
        counts = [sum(test(cells[n]) for cells in looked) for n in range(width)]
        if counts and max(counts) * 2 > len(looked):
            return counts.index(max(counts))
    return None
