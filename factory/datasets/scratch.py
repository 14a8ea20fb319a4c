"""Scratch folders on the local disk, and the removal of those that killed processes left."""

import functools
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STALE_SECONDS = 90.0  # a lock or unfinished file of another host counts as dead after this time
SCRATCH = "factory-"


@contextmanager
def scratch() -> Iterator[Path]:
    """Lend a folder on the local disk while the block runs.

    A killed process leaves its folder behind. The next process on this machine that asks for a
    folder removes it.
    """
    sweep_scratch()
    folder = Path(tempfile.gettempdir()) / f"{SCRATCH}{process_token()}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@functools.cache
def sweep_scratch() -> None:
    """Remove the scratch folders of this user's dead processes; each process does it once."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}{socket.gethostname()}.*.*"):
        try:
            ours = folder.stat().st_uid == os.getuid()
        except FileNotFoundError:  # another process sweeps as well
            continue
        if ours and is_dead(folder, folder.name.removeprefix(SCRATCH)):
            shutil.rmtree(folder, ignore_errors=True)


def process_token() -> str:
    """Return a unique name that states this host and process."""
    return f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"


def is_dead(path: Path, token: str) -> bool:
    """Tell whether the process that made `path` is dead.

    Args:
        path: a file or folder whose name ends with the token.
        token: a name from `process_token`.
    """
    host, _, rest = token.rpartition(".")[0].rpartition(".")
    if host == socket.gethostname() and rest.isdigit():
        return not is_alive(int(rest))
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False


def is_alive(pid: Any) -> bool:
    """Tell whether a process of this machine is alive."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with suppress(OSError):  # a system without /proc does not tell
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"  # killed, if not yet buried by its parent
    return True
