"""Checkpoints of a training: they are atomic and complete, and the newest few are kept.

A checkpoint is the folder `checkpoints/step-NNNNNNNNN/` of the output store. `checkpoint.json`,
which lists the other files with their sha256, is written last; a folder without it is ignored. A
checkpoint holds everything that a training needs to continue: weights, averages, optimizer and
position.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factory.datasets.provenance import sha256_file
from factory.datasets.store import Store
from factory.recipe import FaultError

FOLDER = "checkpoints"
MARKER = "checkpoint.json"
STATE = "state.pt"  # the part that all workers share

Files = dict[str, str]  # file name below the checkpoint -> sha256


def save(store: Store, step: int, parts: Mapping[str, Mapping[str, Any]], keep: int = 0) -> None:
    """Save the checkpoint of a step; every worker of torch.distributed calls it with its parts.

    Args:
        store: output of the training.
        step: number of optimizer steps done.
        parts: states by file name. A state consists of tensors, numbers, strings, None, and lists,
            tuples and dicts of them, which `torch.load(weights_only=True)` accepts.
        keep: how many of the newest checkpoints to keep; 0 keeps all.
    """
    import torch
    from torch import distributed

    with tempfile.TemporaryDirectory() as folder:
        for name, state in parts.items():
            torch.save(dict(state), Path(folder) / name)
        files = upload(store, step, Path(folder))
    alone = not _together()
    if not alone:
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, files)
        files = {name: sha256 for part in gathered for name, sha256 in part.items()}
    if alone or distributed.get_rank() == 0:
        commit(store, step, files)
        if keep:
            prune(store, keep)
    if not alone:
        distributed.barrier()


def upload(store: Store, step: int, folder: Path) -> Files:
    """Copy all files below a local folder into a checkpoint that is not committed yet.

    Several workers may upload different files of one checkpoint; one of them then commits.

    Returns:
        The sha256 of each file, by name, for `commit`.
    """
    files: Files = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = path.relative_to(folder).as_posix()
        store.put(path, f"{_folder(step)}/{name}")
        files[name] = sha256_file(path)
    return files


def commit(store: Store, step: int, files: Files) -> None:
    """Write the marker of a complete checkpoint, after all its files."""
    marker = {"step": step, "files": files}
    store.write(f"{_folder(step)}/{MARKER}", json.dumps(marker, indent=1, sort_keys=True).encode())


def steps(store: Store) -> list[int]:
    """Return the steps of all complete checkpoints, oldest first."""
    names = (name.split("/") for name in store.list(FOLDER))
    return sorted(int(n[1].removeprefix("step-")) for n in names if n[2:] == [MARKER])


def latest(store: Store) -> int | None:
    """Return the step of the newest complete checkpoint, or None."""
    return max(steps(store), default=None)


def agreed(store: Store) -> int | None:
    """Return `latest` as rank 0 sees it; every worker of torch.distributed calls this.

    A node may see a listing that is some seconds old, as NFS hands it out.
    """
    from torch import distributed

    if not _together():
        return latest(store)
    found = [latest(store) if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(found, 0)
    return found[0]


def load(store: Store, step: int) -> dict[str, dict[str, Any]]:
    """Return the parts that `save` saved, by name, with tensors on the CPU.

    Raises:
        FaultError: a file is missing or its sha256 is wrong.
    """
    import torch

    with fetch(store, step) as folder:
        return {
            path.name: torch.load(path, map_location="cpu", weights_only=True)
            for path in sorted(folder.iterdir())
        }


@contextmanager
def fetch(store: Store, step: int) -> Iterator[Path]:
    """Lend a local folder with all files of a checkpoint, after a check of their sha256."""
    marker = json.loads(store.read(f"{_folder(step)}/{MARKER}"))
    with tempfile.TemporaryDirectory() as folder:
        for name, sha256 in marker["files"].items():
            path = Path(folder) / name
            try:
                store.fetch(f"{_folder(step)}/{name}", path)
            except FileNotFoundError:
                raise FaultError(f"checkpoint {_folder(step)}: {name} is missing") from None
            if sha256_file(path) != sha256:
                raise FaultError(
                    f"checkpoint {_folder(step)}: {name} is damaged (sha256); delete this "
                    "checkpoint's folder to continue from the one before"
                )
        yield Path(folder)


def prune(store: Store, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and older incomplete ones."""
    kept = steps(store)[-keep:]
    if not kept:
        return
    doomed = [name for name in store.list(FOLDER) if _step(name) < kept[0]]
    # Markers go first, so that a half-deleted checkpoint does not look complete.
    for name in sorted(doomed, key=lambda name: not name.endswith("/" + MARKER)):
        store.delete(name)
    if store.root is not None:
        for folder in (store.root / FOLDER).iterdir():
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _together() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _folder(step: int) -> str:
    return f"{FOLDER}/step-{step:09d}"


def _step(name: str) -> int:
    return int(name.split("/")[1].removeprefix("step-"))
