"""The datasets that trials share: made once, held by one trial at a time while they are made."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from factory.datasets.manifest import MANIFEST, load_manifest
from factory.datasets.store import HEARTBEAT_SECONDS, LOCK, STALE_SECONDS, Lock, Store
from factory.recipe import GenerateRecipe, InputError

ORPHAN_SEC = STALE_SECONDS + 2 * HEARTBEAT_SECONDS  # by then a dead holder's lock is stale


class Pools:
    """Makes pools that are missing, one at a time, on the actors their recipes ask for."""

    def __init__(self, folder: str) -> None:
        """Work in the driver's folder, where relative paths of recipes begin."""
        from factory.cluster.connect import connect

        enter(folder)
        connect("auto")

    def make(self, recipe: GenerateRecipe, url: str) -> dict[str, Any]:
        """Return what a pool has cost, having made it when it was missing.

        Returns:
            made: whether it was made, or finished, now; seconds: of wall time that took;
            actor_seconds: of its actors' work, whenever that was; images: in the pool.
        """
        from factory.generation.run import check_sources, fill

        store, start = Store(url), time.monotonic()
        missing = not store.exists(MANIFEST)
        if missing:
            handed_down = check_sources(recipe)
            with held(store, patient=True) as lock:
                missing = not store.exists(MANIFEST)  # who held the lock may have made it
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
    """Hold a store's lock; who holds it is given time to end, or, if it is dead, to be stale.

    Args:
        store: what is written to.
        patient: wait for as long as the holder renews its lock, as for a pool that another sweep
            is making.

    Raises:
        InputError: it is held by another for too long.
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
    """Work in a folder of the driver's, where there is such a one here."""
    if os.path.isdir(folder):  # relative paths of recipes mean the driver's folder
        os.chdir(folder)
