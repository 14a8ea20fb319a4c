"""WebDataset tars: an image and its label for each key, the label in a member beside it."""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

from factory.datasets.store import Store
from factory.prepare.labels import LONGEST_LABEL, Labels, label_text
from factory.prepare.listing import (
    LONGEST_BYTES,
    SUFFIXES,
    UNREADABLE_AT,
    WEBDATASET,
    Item,
    Labelling,
    Listing,
    by_label,
    is_hidden,
    listed,
    printable,
    shown,
)
from factory.recipe import InputError

CLS = "cls"
MOST_LABEL_BYTES = 1 << 20  # of a member that holds a label
DAMAGED = (tarfile.TarError, ValueError, OSError, EOFError, OverflowError, IndexError)


def list_tars(
    store: Store,
    tars: list[str],
    how: Labelling,
    labels: Labels | None = None,
    kind: str = WEBDATASET,
) -> Listing:
    """List the samples of tars, labelled by `cls` members or as the user says.

    Raises:
        InputError: a tar is compressed or damaged, or a sample lacks its image or label.
    """
    pairs: list[tuple[str, Item]] = []
    ignored = hidden = 0
    sizes: list[int] = []
    for name in tars:
        sizes.append(store.size(name))
        tar = _Tar(store, name, how.label)
        pairs += tar.samples() if labels is None else tar.images()
        ignored, hidden = ignored + tar.ignored, hidden + tar.hidden
    notes: list[str] = []
    if labels is not None:
        of, notes = labels.matched([name for name, _ in pairs])
        pairs = [(of[name], item) for name, item in pairs if name in of]
    return listed(store, kind, by_label(pairs), ignored, sizes, hidden, notes)


class _Tar:
    """One tar, read once: its images and labels by key."""

    def __init__(self, store: Store, name: str, label: str) -> None:
        self.what, self.ignored, self.hidden = f"SOURCE {store.url}/{name}", 0, 0
        self.name, self.label = name, label
        self.extension, _, self.field = (label or CLS).partition(":")
        self._images: dict[str, Item] = {}
        self._labels: dict[str, str] = {}
        self._others: dict[str, list[str]] = {}
        try:
            with store.open_random(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isfile():
                        self._see(tar, member)
        except DAMAGED as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.what}: {error}; accepted are whole tars that are not compressed"
            ) from None

    def samples(self) -> Iterator[tuple[str, Item]]:
        """Yield label and image of each sample."""
        for key in sorted(self._images.keys() | self._labels.keys()):
            if key in self._images and key in self._labels:
                yield self._labels[key], self._images[key]
                continue
            lacks = "image" if key not in self._images else f"label (.{self.extension})"
            others = ", ".join(sorted(self._others.get(key, ())))
            hint = f"; it has {others}, and --label json:FIELD or --label txt reads labels there"
            raise InputError(
                f"{self.what}: sample {shown(key)} has no {lacks}; accepted are samples with both"
                f"{hint if others and 'label' in lacks else ''}"
            )

    def images(self) -> Iterator[tuple[str, Item]]:
        """Yield name and image of each sample."""
        for key in sorted(self._images):
            yield self._images[key].name, self._images[key]

    def _see(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        if is_hidden(member.name):
            self.hidden += 1
            return
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if f".{extension.lower()}" in SUFFIXES:
            if key in self._images:
                raise InputError(
                    f"{self.what}: sample {shown(key)} has two images; accepted is one"
                )
            at = member.offset_data if member.size <= LONGEST_BYTES else UNREADABLE_AT
            self._images[key] = Item(self.name, printable(member.name), at, member.size)
        elif extension == self.extension:
            self._labels[key] = self._read(tar, member)
        else:
            self.ignored += 1
            if extension in ("json", "txt", CLS):
                self._others.setdefault(key, []).append(extension)

    def _read(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
        """Return the label a member holds."""
        what = f"{self.what}: {shown(member.name)}"
        if member.size > MOST_LABEL_BYTES:
            raise InputError(
                f"{what} has {member.size:,} bytes; accepted are {MOST_LABEL_BYTES:,} of a label"
            )
        content = tar.extractfile(member)
        assert content is not None
        data = content.read()
        if self.extension == "json":
            return label_text(_field(data, self.field, what), f"{what}: {self.field}")
        try:
            text = data.decode().strip()
        except UnicodeDecodeError:
            raise InputError(f"{what} is {data[:20]!r}; accepted is a label in UTF-8") from None
        if not self.label and not (text.isascii() and text.isdecimal()):
            raise InputError(
                f"{what} is {data[:20]!r}; accepted is an integer, 0 or more, or --label cls "
                "for labels that are names"
            )
        return label_text(text, what)


def _field(data: bytes, field: str, what: str) -> Any:
    """Return a field of a JSON object; its name may be a path parted by dots."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: no JSON ({error}); accepted is an object") from None
    for part in [field] if isinstance(found, dict) and field in found else field.split("."):
        if not isinstance(found, dict) or part not in found:
            named = ", ".join(shown(str(name)) for name in found) if isinstance(found, dict) else ""
            raise InputError(
                f"{what} has no field {field!r}; "
                + (f"it has {named[:LONGEST_LABEL]}" if named else "accepted is an object with it")
            )
        found = found[part]
    return found
