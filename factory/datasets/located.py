"""Files named by a location: a local file is used in place, a file behind a URL is copied.

A copy in the cache is named by the file's address, size and time of change. A node therefore
fetches a file once, and again after it was replaced. If a store tells no times, every process
fetches the file once. A caller that knows a sha256 compares it with the copy's.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from factory.datasets.store import Store, cache_home, parted
from factory.recipe import InputError, file_of, local_path, public

COPIES = "weights"  # folder of the cache
_fetched: set[Path] = set()  # copies that this process fetched from stores that tell no times


def local_file(location: str, what: str, accepted: str, inside: str = "") -> Path:
    """Return a local path of the file that a location names.

    Args:
        location: a path, `package:PATH`, a URL as `Store` opens it, or one of them behind a prefix
            of `factory.recipe.FOREIGN`, with options.
        what: the name of the location in errors, such as "recipe field weights.teacher.location".
        accepted: the end of the error for a missing file, such as "accepted is a file".
        inside: the file to take if the location is a folder.

    Raises:
        InputError: there is no such file, or the URL cannot be read.
    """
    found = find_file(location, what, inside)
    if found is None:
        remote = _is_remote(location)
        place = public(file_of(location)) if remote else _on_disk(location, inside)
        raise InputError(f"{public(what)}: no file {place}; {accepted}")
    return found


def find_file(location: str, what: str, inside: str = "") -> Path | None:
    """Return a local path of the file as `local_file` does, or None if there is no such file."""
    if not _is_remote(location):
        path = _on_disk(location, inside)
        return path if path.is_file() else None
    with _explained(location, what):
        copies = (_copied(store, name) for store, name in _places(file_of(location), inside))
        return next((copy for copy in copies if copy is not None), None)


def folder_files(location: str, suffix: str, what: str) -> list[Path]:
    """Return local paths of a folder's files with one suffix, sorted by name; no subfolders.

    Raises:
        InputError: the URL cannot be read.
    """
    if not _is_remote(location):
        return sorted(local_path(location).glob(f"*{suffix}"))
    with _explained(location, what):
        store = Store(location)
        names = sorted(name for name in store.list() if name.endswith(suffix) and "/" not in name)
        return [copy for copy in (_copied(store, name) for name in names) if copy is not None]


def _is_remote(location: str) -> bool:
    file = file_of(location)
    return "://" in file and not file.startswith("file://")


def _on_disk(location: str, inside: str) -> Path:
    path = local_path(location)
    return path / inside if inside and path.is_dir() else path


def _places(url: str, inside: str) -> Iterator[tuple[Store, str]]:
    """Yield the possible places of the file: the URL itself, then `inside` below it."""
    place, query = parted(url)
    folder, _, name = place.rpartition("/")
    if not folder.endswith("/"):  # otherwise the URL is a bucket
        yield Store(folder + query), name
    if inside:
        yield Store(place + query), inside


def _copied(store: Store, name: str) -> Path | None:
    """Return the copy of a file, fetching it if needed; None if there is no such file."""
    version = store.version(name)
    if version is None:
        return None
    known = hashlib.sha256("\n".join(map(str, (store.url, name, *version))).encode()).hexdigest()
    folder = parted(store.url)[0].rpartition("/")[2]
    # Folder and file keep their names, by which the catalog finds the licences of weights.
    path = cache_home() / COPIES / known / folder / name
    if not path.exists() or (version[1] is None and path not in _fetched):
        store.fetch(name, path)
        _fetched.add(path)
    return path


@contextmanager
def _explained(location: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: not a valid address or file name
        reason = " ".join(public(str(error)).split())
        raise InputError(f"{public(what)}: {public(location)} cannot be read ({reason})") from error
