"""LMDB as Vec2Face and its trainers ship datasets: msgpack of (image, label) under each key.

`__keys__` and `__len__` list the keys, `__classnum__` counts the labels. Nothing but msgpack's
plain values is read, never a pickle.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from factory.datasets.store import Store
from factory.prepare.labels import label_text
from factory.prepare.listing import LMDB, Item, Listing, by_label, listed, shown
from factory.recipe import InputError

SUFFIX, DATA = ".lmdb", "data.mdb"
KEYS = b"__keys__"
PLAIN = "accepted is LMDB of msgpack (image, label) with the keys in __keys__"


def is_lmdb(names: Sequence[str]) -> bool:
    """Tell whether the files of a folder are an LMDB environment."""
    return DATA in names


def list_lmdb(store: Store, name: str) -> Listing:
    """List an LMDB: a file, or (the name is data.mdb) the folder it lies in.

    Raises:
        InputError: it is remote, damaged or of another form, or the library is missing.
    """
    reader = LmdbReader(store, name)
    try:
        found = by_label(
            (label, Item(name, shown(key.decode("utf-8", "backslashreplace")), number))
            for number, (key, label) in enumerate(reader.labels())
        )
    finally:
        reader.close()
    return listed(store, LMDB, found, 0, [store.size(name)])


class LmdbReader:
    """Reads images of an LMDB by the number of their key."""

    def __init__(self, store: Store, name: str) -> None:
        """Open it and read its keys."""
        self.what = f"SOURCE {store.url}/{name}"
        if store.root is None:
            raise InputError(f"{self.what}: LMDB is mapped from disk; accepted is a local path")
        try:
            import lmdb  # pyright: ignore[reportMissingImports]
            import msgpack
        except ImportError as error:
            raise InputError(
                f"{self.what}: reading LMDB needs the package {error.name}; accepted after pip "
                'install "face-data-factory[lmdb]"'
            ) from None
        self._unpack: Any = msgpack.unpackb
        folder = PurePosixPath(name).name == DATA
        path = Path(store.root, name).parent if folder else Path(store.root, name)
        try:
            self._env: Any = lmdb.open(
                str(path), subdir=folder, readonly=True, lock=False, readahead=False
            )
            self._read: Any = self._env.begin(buffers=False)
        except (lmdb.Error, OSError) as error:
            raise InputError(f"{self.what}: no LMDB ({error}); {PLAIN}") from None
        self._broken = lmdb.Error
        kept = self._get(KEYS)
        keys = None if kept is None else self._plain(kept, "__keys__")
        if not isinstance(keys, list) or not all(isinstance(key, bytes | str) for key in keys):
            raise InputError(f"{self.what}: has no list of keys in __keys__; {PLAIN}")
        self._keys = [key.encode() if isinstance(key, str) else key for key in keys]

    def labels(self) -> Iterator[tuple[bytes, str]]:
        """Yield key and label of every image; InputError where one is of another form."""
        for number, key in enumerate(self._keys):
            label = self._pair(number)[1]
            if isinstance(label, bytes):
                label = label.decode("utf-8", "backslashreplace")
            yield key, label_text(label, f"{self.what}: label of key {key!r}")

    def read(self, number: int) -> bytes:
        """Return an image."""
        image = self._pair(number)[0]
        return image if isinstance(image, bytes) else b""

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _get(self, key: bytes) -> bytes | None:
        try:
            return self._read.get(key)
        except self._broken as error:
            raise InputError(f"{self.what}: damaged ({error}); {PLAIN}") from None

    def _plain(self, data: bytes, key: str) -> Any:
        try:
            return self._unpack(data, raw=True, strict_map_key=False)
        except Exception as error:  # msgpack's exceptions have no common class
            raise InputError(f"{self.what}: {key} is no msgpack ({error}); {PLAIN}") from None

    def _pair(self, number: int) -> list[Any]:
        key = self._keys[number]
        data = self._get(key)
        found = None if data is None else self._plain(data, f"key {key!r}")
        if not isinstance(found, list) or len(found) < 2:
            raise InputError(f"{self.what}: key {key!r} holds no (image, label); {PLAIN}")
        return found
