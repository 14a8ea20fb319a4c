"""The output of an export: a folder or URL of files, which are hashed while they are written."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from factory.datasets.claim import Claim
from factory.datasets.patience import REMOTE_WORKERS, in_order
from factory.datasets.store import Store

CLAIM = "export.json"
EXPORT = Claim(CLAIM, "the export", "--to")
SUMS = "SHA256SUMS"


class Hashed:
    """A file open for writing in order, with the sha256 of the written bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        """Wrap an open binary file."""
        self.sha, self.closed = hashlib.sha256(), False
        self._file, self._at = file, 0

    def write(self, data: bytes) -> int:
        """Append bytes."""
        self.sha.update(data)
        self._file.write(data)
        size = memoryview(data).nbytes
        self._at += size
        return size

    def tell(self) -> int:
        """Return the number of written bytes."""
        return self._at

    def flush(self) -> None:
        """Do nothing; the store flushes when the file is complete."""

    def close(self) -> None:
        """Do nothing; the store closes the file."""


class Output:
    """The files of an export; `SHA256SUMS` is written last and shows that it is complete."""

    def __init__(self, store: Store, claim: dict[str, Any]) -> None:
        """Claim a folder for an export.

        Args:
            store: an empty folder, or a folder of an export with the same claim.
            claim: source and options of the export; kept in `export.json`.

        Raises:
            InputError: the folder holds something else.
        """
        self.store = store
        content = json.dumps(claim, indent=1, sort_keys=True).encode() + b"\n"
        EXPORT.check(store, claim)
        store.sweep()
        self._sums = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        store.delete(SUMS)
        self.write(CLAIM, content)

    @contextmanager
    def open(self, name: str) -> Iterator[Hashed]:
        """Open a file for writing in order."""
        with self.store.open_output(name) as file:
            hashed = Hashed(file)
            yield hashed
        self._note(name, hashed.sha.hexdigest())

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self.store.write(name, data)
        self._note(name, hashlib.sha256(data).hexdigest())

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Write many small files, several at once, because each one waits for its flush."""
        for name, sha256 in in_order(self._written, files, REMOTE_WORKERS):
            self._note(name, sha256)

    def put(self, local: Path, name: str, sha256: str) -> None:
        """Copy a local file whose sha256 is known."""
        self.store.put(local, name)
        self._note(name, sha256)

    def put_all(self, files: Iterable[tuple[Path, str, str]]) -> None:
        """Move local files into the store while the next ones are made; several are on their way.

        Args:
            files: (path, name, sha256) of each file, which is deleted when it is stored.
        """
        for name, sha256 in in_order(self._moved, files, self.store.workers):
            self._note(name, sha256)

    def finish(self) -> None:
        """Write the checksums of all files in the form of `sha256sum --check`."""
        self._sums.seek(0)
        with self._sums as sums, self.store.open_output(SUMS) as out:
            for line in sums:
                out.write(line)

    def _written(self, file: tuple[str, bytes]) -> tuple[str, str]:
        name, data = file
        self.store.write(name, data)
        return name, hashlib.sha256(data).hexdigest()

    def _moved(self, file: tuple[Path, str, str]) -> tuple[str, str]:
        path, name, sha256 = file
        self.store.put(path, name)
        path.unlink()
        return name, sha256

    def _note(self, name: str, sha256: str) -> None:
        self._sums.write(f"{sha256}  {name}\n".encode())
