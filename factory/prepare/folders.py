"""Images in folders, on disk or in a store: links followed, leftovers left out, names checked."""

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from factory.datasets.store import Store
from factory.prepare.labels import Labels
from factory.prepare.listing import (
    FOLDER,
    LONGEST_BYTES,
    UNREADABLE_AT,
    Item,
    Labelling,
    Listing,
    by_folder,
    by_label,
    is_hidden,
    is_image,
    listed,
    printable,
    shown,
)
from factory.recipe import InputError


@dataclass
class Walked:
    """The files of a folder.

    Attributes:
        sizes: in bytes, by name; 0 for what cannot be read.
        broken: names of what is no file that can be read: links to nothing, pipes, names that are
            no UTF-8.
        hidden: how many files were left behind by notebooks and archives.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    hidden: int = 0


def walk(store: Store) -> Walked:
    """Return the files of a source, links followed.

    Raises:
        InputError: a linked folder leads back into itself, or a folder cannot be read.
    """
    found = Walked()
    if store.root is None:
        for name, size in store.sizes().items():
            if is_hidden(name):
                found.hidden += 1
            else:
                found.sizes[name] = size
        return found
    todo = [("", store.root, frozenset({_place(store.root.stat())}))]
    while todo:
        above, folder, ancestors = todo.pop()
        for entry in _entries(folder, store):
            name = above + entry.name
            if is_hidden(entry.name):
                found.hidden += _files_below(entry)
                continue
            try:
                state = entry.stat()
            except OSError:  # a link that leads nowhere, or to itself
                found.sizes[name] = 0
                found.broken.add(name)
                continue
            if stat.S_ISDIR(state.st_mode):
                place = _place(state)
                if place in ancestors:
                    raise InputError(
                        f"SOURCE {store.url}: {shown(name)} is a link that leads back to a folder "
                        "it lies in; accepted are links without loops"
                    )
                todo.append((f"{name}/", Path(entry.path), ancestors | {place}))
                continue
            found.sizes[name] = state.st_size
            if not stat.S_ISREG(state.st_mode) or printable(name) != name:
                found.broken.add(name)
    return found


def _place(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _entries(folder: Path, store: Store) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(
            f"SOURCE {store.url}: {shown(str(folder))}: {error.strerror}; accepted are folders "
            "that can be read"
        ) from None


def _files_below(entry: os.DirEntry[str]) -> int:
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(names) for _, _, names in os.walk(entry.path))


def list_folder(store: Store, walked: Walked, how: Labelling, labels: Labels | None) -> Listing:
    """List a folder of images: an identity a folder, or as a list of labels says.

    Raises:
        InputError: no images, images of nobody, or a list that names none of them.
    """
    names = sorted(name for name in walked.sizes if is_image(name))
    ignored = len(walked.sizes) - len(names)

    def item(name: str) -> Item:
        size = walked.sizes[name]
        if name in walked.broken or size > LONGEST_BYTES:
            return Item(printable(name), printable(name), UNREADABLE_AT)
        return Item(name, name)

    sizes = [walked.sizes[name] for name in names]
    return gathered(store, FOLDER, names, item, how, labels, ignored, sizes, walked.hidden)


def gathered(
    store: Store,
    kind: str,
    names: list[str],
    item: Callable[[str], Item],
    how: Labelling,
    labels: Labels | None,
    ignored: int,
    sizes: Iterable[int],
    hidden: int,
) -> Listing:
    """Return the listing of named images, each a person of its own, or by list, or by folder.

    Args:
        store: the source.
        kind: of the source.
        names: of the images, in their order.
        item: makes an image's entry from its name.
        how: what the user said.
        labels: the list of labels, where there is one.
        ignored, sizes, hidden: as `listed`.
    """
    notes: list[str] = []
    if how.unlabelled:
        found = {name: [item(name)] for name in names}
    elif labels is not None:
        of, notes = labels.matched(names)
        found = by_label((of[name], item(name)) for name in names if name in of)
    else:
        people, notes = by_folder(names, how, f"SOURCE {store.url}")
        found = {person: [item(name) for name in part] for person, part in people.items()}
    return listed(store, kind, found, ignored, sizes, hidden, notes)
