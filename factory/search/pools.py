"""The pools that trials share: each is made once, by one trial at a time."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from factory.datasets.manifest import MANIFEST, load_manifest
from factory.datasets.store import HEARTBEAT_SECONDS, LOCK, STALE_SECONDS, Lock, Store
from factory.recipe import GenerateRecipe, InputError

ORPHAN_SEC = STALE_SECONDS + 2 * HEARTBEAT_SECONDS  # after this, a dead holder's lock is stale


class Pools:
    """Makes missing pools, one at a time, with the actors of their recipes."""

    def __init__(self, folder: str) -> None:
        """Change to the driver's folder, where relative paths of recipes start."""
        from factory.cluster.connect import connect

        enter(folder)
        connect("auto")

    def make(self, recipe: GenerateRecipe, url: str) -> dict[str, Any]:
        """Make a pool if it is missing, and return its cost.

        Returns:
            made: whether it was made or finished now; seconds: wall time of this call;
            actor_seconds: its actors' work, now or earlier; images: number of its images.
        """
        from factory.generation.run import check_sources, fill

        store, start = Store(url), time.monotonic()
        missing = not store.exists(MANIFEST)
        if missing:
            handed_down = check_sources(recipe)
            with held(store, patient=True) as lock:
                missing = not store.exists(MANIFEST)  # the last holder of the lock may have made it
                if missing:
                    fill(recipe, lock, handed_down, lambda line: None)
        totals = load_manifest(store).totals
        return {
            "made": missing,
            "seconds": round(time.monotonic() - start, 2),
            "actor_seconds": round(sum(totals.seconds.values()), 2),
            "images": totals.kept,
        }


@contextmanager
def held(store: Store, patient: bool = False) -> Iterator[Lock]:
    """Hold a store's lock; wait until another holder ends or its lock becomes stale.

    Args:
        store: the store to write to.
        patient: wait as long as the holder renews its lock, for example for a pool that another
            sweep makes.

    Raises:
        InputError: another writer holds the lock for too long.
    """
    seen, deadline = b"", time.monotonic() + ORPHAN_SEC
    while True:
        lock = Lock(store, "sweep")
        try:
            lock.take()
            break
        except InputError:
            if patient and (now := _beat(store)) != seen:
                seen, deadline = now, time.monotonic() + ORPHAN_SEC
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
    try:
        yield lock
    finally:
        lock.release()


def _beat(store: Store) -> bytes:
    """Return a lock's content, which its holder changes with each renewal."""
    try:
        return store.read(LOCK)
    except FileNotFoundError:
        return b""


def enter(folder: str) -> None:
    """Change to the driver's folder if this node has it."""
    if os.path.isdir(folder):  # relative paths of recipes start at the driver's folder
        os.chdir(folder)
