"""Images of a source by their entries, whatever it is kept in."""

from typing import IO, Any

from factory.datasets.store import Store
from factory.prepare import recordio
from factory.prepare.listing import FOLDER, LMDB, LONGEST_BYTES, PARQUET, RECORDIO, ZIP, Item
from factory.prepare.lmdbs import LmdbReader
from factory.prepare.parquet import ParquetReader
from factory.prepare.zips import ZipReader

OPEN_FILES = 64


class ItemReader:
    """Reads the images of a source by their entries, keeping its files open."""

    def __init__(self, store: Store, kind: str) -> None:
        """Take the store and the kind a listing came with."""
        self.store, self.kind = store, kind
        self._files: dict[str, IO[bytes]] = {}
        self._readers: dict[str, Any] = {}

    def read(self, entry: Item) -> bytes:
        """Return the encoded image; empty bytes for what can be none.

        Raises:
            InputError: the file ends before it does, or is damaged.
            FileNotFoundError: the file has gone since it was listed.
        """
        if entry.offset < 0:
            return b""
        if self.kind == FOLDER:
            if self.store.root is None:
                return self.store.read(entry.file)
            with (self.store.root / entry.file).open("rb") as file:
                return file.read(LONGEST_BYTES)
        if self.kind in (ZIP, PARQUET, LMDB):
            return self._inner(entry.file).read(entry.offset)
        file = self._open(entry.file)
        what = f"SOURCE {self.store.url}/{entry.file}"
        if self.kind == RECORDIO:
            return recordio.parse(recordio.read_payload(file, entry.offset, what), what).image
        file.seek(entry.offset)
        return file.read(entry.size)

    def _inner(self, name: str) -> Any:
        if name not in self._readers:
            what = f"SOURCE {self.store.url}/{name}"
            if self.kind == LMDB:
                self._readers[name] = LmdbReader(self.store, name)
            else:
                made = ZipReader if self.kind == ZIP else ParquetReader
                self._readers[name] = made(self._open(name), what)
        return self._readers[name]

    def _open(self, name: str) -> IO[bytes]:
        if name not in self._files:
            if len(self._files) >= OPEN_FILES:
                self.close()
            self._files[name] = self.store.open_random(name)
        return self._files[name]

    def close(self) -> None:
        """Close what is open."""
        for reader in self._readers.values():
            if isinstance(reader, LmdbReader):
                reader.close()
        self._readers.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()
