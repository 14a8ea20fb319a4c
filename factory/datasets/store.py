"""A store: one folder of files, on local disk or behind a URL.

A local file is written under another name, flushed and renamed, so that a file is either absent or
complete. An object store may publish an incomplete file; there only a shard's manifest, which is
written last, proves that the shard is complete (docs/contracts.md 2). Requests to a remote store
are repeated for about half a minute before they fail. One writer at a time holds the store's lock.
"""

import json
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from factory import stops
from factory.datasets.filesystem import check_names, file_system
from factory.datasets.patience import LOCAL_WORKERS, REMOTE_WORKERS, patient
from factory.datasets.scratch import STALE_SECONDS, is_alive, is_dead, process_token, scratch
from factory.recipe import FaultError, InputError, public
from factory.recipe.errors import FULL

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
PART = ".part-"  # part of the name of a file that is still being written
LOCK = "lock"
HEARTBEAT_SECONDS = 10.0
SETTLE_SECONDS = 1.0  # between writing a lock and reading it back if creation is not exclusive
COPY_BYTES = 1 << 20


class Store:
    """The files of one dataset, by relative names with forward slashes.

    Attributes:
        root: the local folder, or None if the store is remote.

    Every method that takes a name raises ValueError if the name is absolute or has an empty, `.` or
    `..` part, and FileNotFoundError if a file to be read does not exist.
    """

    def __init__(self, url: str | Path) -> None:
        """Open a folder, which need not exist.

        Args:
            url: a local path, `file://`, `s3://` or `gs://` URL (pyarrow.fs, with its query
                options such as `?endpoint_override=`), or any other URL that fsspec knows.

        Raises:
            InputError: the URL has an unknown scheme or names no bucket.
        """
        self._address = str(url)
        self.root: Path | None = None  # absolute, because actors may work in another folder
        if not self._address:
            raise InputError("store: '' is no address; accepted is a local path or a URL")
        check_names(self._address)
        if "://" not in self._address:
            self.root = Path(self._address).absolute()
        elif self._address.startswith("file://"):
            self.root = Path(self._address.removeprefix("file://"))
        self._remote: FileSystem | None = None
        self._base = ""
        if self.root is None:
            self._remote, self._base = file_system(self._address, self.url)
            if not self._base:
                raise InputError(f"store {self.url}: names no bucket; accepted is s3://BUCKET/...")

    @property
    def url(self) -> str:
        """Return the address without credentials; use it to show the store, not to open it."""
        return public(self._address)

    def __repr__(self) -> str:
        """Name the store without credentials."""
        return f"Store({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the address only; each actor opens its own connection."""
        return Store, (self._address if self.root is None else self.root,)

    @property
    def workers(self) -> int:
        """Return how many files to read at once."""
        return LOCAL_WORKERS if self.root is not None else REMOTE_WORKERS

    @patient
    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        if self.root is not None:
            return self._local(name).is_file()
        if self._fs.type_name != "s3":
            return self._info(name) is not None
        with suppress(FileNotFoundError):  # one request; `_info` makes two for what is not there
            self._fs.open_input_file(self._key(name)).close()
            return True
        return False

    @patient
    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        if self.root is not None:
            return self._local(name).stat().st_size
        info = self._info(name)
        if info is None:
            raise FileNotFoundError(f"{self.url}: no file {name}")
        return info.size

    @patient
    def version(self, name: str) -> tuple[int, int | None] | None:
        """Return values that change when a file is replaced; None if there is no file.

        They are its size in bytes and its time of change in nanoseconds. The time is None if the
        store does not tell it.
        """
        if self.root is not None:
            path = self._local(name)
            return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        info = self._info(name)
        return None if info is None else (info.size, info.mtime_ns)

    @patient
    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self._stream(name) as file:
            return file.read()

    @patient
    def open_input(self, name: str) -> IO[bytes]:
        """Open a file for reading in order, without loading it whole."""
        return self._stream(name)

    @patient
    def open_random(self, name: str) -> IO[bytes]:
        """Open a file for reading at any place; each read of a remote file is a request."""
        if self.root is not None:
            return self._local(name).open("rb")
        return cast(IO[bytes], self._fs.open_input_file(self._key(name)))

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of all files below a folder, in any order; "" is the whole store."""
        if self.root is not None:
            start = self._local(prefix) if prefix else self.root
            for folder, _, names in os.walk(start):
                inside = Path(folder).relative_to(self.root).as_posix()
                above = "" if inside == "." else f"{inside}/"
                yield from (above + name for name in names)
            return
        yield from (name for name, _ in self._files(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of each file below a folder, in any order; see `list`."""
        if self.root is not None:
            return {name: self.size(name) for name in self.list(prefix)}
        return dict(self._files(prefix))

    @patient
    def delete(self, name: str) -> None:
        """Remove a file if it exists."""
        if self.root is not None:
            self._local(name).unlink(missing_ok=True)
        elif self._info(name) is not None:
            self._fs.delete_file(self._key(name))

    @contextmanager
    def open_output(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for writing in order; an older file of this name is replaced at the end.

        After an error inside the block a local file is unchanged; an object store may keep what was
        written so far.
        """
        if self.root is not None:
            with _aside(self._local(name)) as part:
                yield part
            return
        with self._fs.open_output_stream(self._key(name)) as out:
            yield out

    @patient
    def write(self, name: str, data: bytes) -> None:
        """Write a file in one piece; an older file of this name is replaced."""
        with self.open_output(name) as out:
            out.write(data)

    @patient
    def put(self, local: Path, name: str) -> None:
        """Copy a local file into the store under a name; the local file stays."""
        with local.open("rb") as file, self.open_output(name) as out:
            shutil.copyfileobj(file, out, COPY_BYTES)

    @patient
    def fetch(self, name: str, local: Path) -> None:
        """Copy a file to a local path; the copy is either absent or complete at any moment."""
        with self._stream(name) as file, _aside(local) as part:
            shutil.copyfileobj(file, part, COPY_BYTES)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Lend a local path of a file: its own, or that of a temporary copy of a remote file."""
        if self.root is not None:
            yield self._local(name)
            return
        with scratch() as folder:
            path = folder / PurePosixPath(name).name
            self.fetch(name, path)
            yield path

    def clear(self, folder: str) -> None:
        """Remove a folder with all its files."""
        for name in list(self.list(folder)):
            self.delete(name)
        if self.root is not None:
            shutil.rmtree(self.root / folder, ignore_errors=True)

    def sweep(self) -> tuple[str, ...]:
        """Remove the unfinished files of dead writers, and return their names."""
        removed = []
        for name in self.list() if self.root is not None else ():
            if PART in name and is_dead(self._local(name), name.rpartition(PART)[2]):
                self.delete(name)
                removed.append(name)
        return tuple(sorted(removed))

    @contextmanager
    def lock(self, owner: str) -> Iterator["Lock"]:
        """Hold the store's lock while the block runs, so that there is only one writer.

        On local disk the lock file is created exclusively. Object stores have no portable exclusive
        creation; there the lock is written and read back, which fails only if two writers start at
        the same moment.

        Args:
            owner: the holder's name in the error of a refused writer, such as "generate".

        Raises:
            InputError: another writer holds the lock; the message has its host, process and age.
        """
        lock = Lock(self, owner)
        lock.take()
        with stops.ending(lock.release):
            try:
                yield lock
            finally:
                lock.release()

    def _local(self, name: str) -> Path:
        assert self.root is not None
        return self.root / _safe(name)

    def _key(self, name: str) -> str:
        return f"{self._base}/{_safe(name)}"

    @property
    def _fs(self) -> Any:
        assert self._remote is not None
        return self._remote

    def _stream(self, name: str) -> IO[bytes]:
        if self.root is not None:
            return self._local(name).open("rb")
        return cast(IO[bytes], self._fs.open_input_stream(self._key(name), compression=None))

    def _files(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield name and size in bytes of each file below a remote folder."""
        from pyarrow import fs

        for info in self._infos(prefix):
            if info.type == fs.FileType.File:
                yield info.path.removeprefix(self._base).lstrip("/"), info.size

    @patient
    def _infos(self, prefix: str) -> Any:
        from pyarrow import fs

        start = self._key(prefix) if prefix else self._base
        return self._fs.get_file_info(fs.FileSelector(start, recursive=True, allow_not_found=True))

    def why(self) -> str:
        """Return what a remote store says against a request, or "" if it has nothing against it."""
        from pyarrow import fs

        nothing = fs.FileSelector(self._key(f"{LOCK}{PART}"), allow_not_found=True)
        try:
            self._fs.get_file_info(nothing)
        except OSError as error:
            return str(error)
        return ""

    def _info(self, name: str) -> Any:
        from pyarrow import fs

        info = self._fs.get_file_info(self._key(name))
        return info if info.type == fs.FileType.File else None


class Lock:
    """The lock of a store: a small JSON file, which a thread renews while the lock is held."""

    def __init__(self, store: Store, owner: str) -> None:
        """Prepare a lock; `take` takes it."""
        self.store = store
        self.owner = owner
        self.token = secrets.token_hex(8)
        self.lost = False
        self._made = False  # whether the folder was made for the lock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="store-lock", daemon=True)

    def take(self) -> None:
        """Take the lock, if need be from a dead holder, and start to renew it."""
        root = self.store.root
        self._made = root is not None and not root.exists()
        if root is None or not _create(root / LOCK, self._content()):
            holder = self._holder()
            if holder is not None:
                self._refuse_if_alive(holder)
            self.store.write(LOCK, self._content())
            time.sleep(SETTLE_SECONDS)
            holder = self._holder()
            if holder is None or holder.get("token") != self.token:
                self._refuse(holder or {}, "it was faster")
        self._thread.start()

    def check(self) -> None:
        """Raise FaultError if another writer has taken the lock."""
        if self.lost:
            raise FaultError(
                f"output {self.store.url}: another writer took its lock, since this one did not "
                f"move for {STALE_SECONDS:.0f} s or the lock was deleted; the other goes on"
            )

    def release(self) -> None:
        """Stop renewing, and remove the lock if it is still this one's."""
        self._stop.set()
        self._thread.join()
        try:
            holder = self._holder()
            if holder is not None and holder.get("token") == self.token:
                self.store.delete(LOCK)
        except FaultError as error:  # the next writer finds that this one is gone
            print(f"lock of {self.store.url} not removed: {error}", flush=True)
        if self._made and self.store.root is not None:
            with suppress(OSError):  # it holds what the job has made
                self.store.root.rmdir()

    def _content(self) -> bytes:
        content = {
            "owner": self.owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": self.token,
            "time": time.time(),
        }
        return json.dumps(content).encode()

    def _holder(self) -> dict[str, Any] | None:
        """Return the lock's content: None without a lock, an empty dict if it is unreadable."""
        try:
            holder = json.loads(self.store.read(LOCK))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                holder = self._holder()
                if holder is None or holder.get("token") != self.token:
                    self.lost = True
                    return
                self.store.write(LOCK, self._content())
            except (OSError, FaultError) as error:  # no answer; the next beat tries again
                print(f"lock of {self.store.url} not renewed: {error}", flush=True)

    def _refuse_if_alive(self, holder: dict[str, Any]) -> None:
        age = _age(holder)
        here = holder.get("host") == socket.gethostname()
        if here and not is_alive(holder.get("pid")):
            why = "its process is gone"
        elif age > STALE_SECONDS:
            why = f"it did not move for {age:.0f} s"
        else:
            self._refuse(holder, f"last seen {age:.0f} s ago")
        print(f"taking over the lock of {self.store.url} from {_describe(holder)}: {why}")

    def _refuse(self, holder: dict[str, Any], why: str) -> NoReturn:
        raise InputError(
            f"output {self.store.url} is being written by {_describe(holder)}, {why}; stop it, or, "
            f"if it is dead, wait {STALE_SECONDS:.0f} s or delete {below(self.store.url, LOCK)}"
        )


def cache_home() -> Path:
    """Return the folder of copies and indexes: below `XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "face-data-factory"


def parted(url: str) -> tuple[str, str]:
    """Split an address into its place, without a slash at the end, and its query.

    The query begins with the question mark; it is "" for a local path.
    """
    remote = "://" in url and not url.startswith("file://")
    place, mark, query = url.partition("?") if remote else (url, "", "")
    return place.rstrip("/"), mark + query


def below(url: str, name: str) -> str:
    """Return the address of a file or folder below another one; a query stays at the end."""
    place, query = parted(url)
    return f"{place}/{name}{query}"


def _safe(name: str) -> str:
    parts = name.split("/")
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"file name {name!r} is not a relative name below the store")
    return name


def write_file(path: str | Path, data: bytes) -> None:
    """Write a local file in one piece, as `Store.write`; a link or a device is written through."""
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):  # /dev/stdout is both
        path.write_bytes(data)
        return
    Store(path.parent).write(path.name, data)


@contextmanager
def _aside(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file beside `path`; after a block without an error, flush it and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}{PART}{process_token()}")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _create(path: Path, data: bytes) -> bool:
    """Create a file together with its content; return False if that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise InputError(f"output {path.parent} cannot be a folder: {error.strerror}") from None
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}{PART}") as file:
        file.write(data)
        file.flush()
        try:
            os.link(file.name, path)
        except OSError:  # it exists, or the file system has no links; the caller reads it back
            return False
    return True


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot flush a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _age(holder: dict[str, Any]) -> float:
    moment = holder.get("time")
    return max(time.time() - moment, 0.0) if isinstance(moment, (int, float)) else float("inf")


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "an unknown writer"
    return f"{holder.get('owner')} (host {holder.get('host')}, process {holder.get('pid')})"
