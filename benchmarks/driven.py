"""The driver that `benchmarks.driver` measures: it generates, verifies, and marks its turns."""

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from factory.plan import shards
from factory.recipe import FaultError, GenerateRecipe, parse

IMAGES_EACH, IDENTITIES, SLOTS = 40, 2, 2  # images of an identity; identities and slots of a shard
COLUMNS = IMAGES_EACH // SLOTS  # shards with the same identities


def recipe_of(count: int, actors: int, seconds: float) -> GenerateRecipe:
    """Return a recipe of shards of four small images each.

    Args:
        count: number of shards, a multiple of 20.
        actors: number of makers; each reserves a thousandth of a CPU.
        seconds: how long a maker sleeps for an image.
    """
    made = parse(
        {
            "kind": "generate",
            "name": "driver",
            "seed": 7,
            "system": "sleeping",
            "licence": "CC0-1.0",
            "image": {"size": 16, "format": "png"},
            "identities": {
                "count": count // COLUMNS * IDENTITIES,
                "images_each": IMAGES_EACH,
                "source": "uniform",
            },
            "shard": {"identities": IDENTITIES, "slots": SLOTS},
            "workers": {"max": actors, "num_cpus": 0.001},
            "cost": {"seconds_per_image": [0.01, 0.02], "source": "none: nothing is sampled"},
            "options": {"seconds": seconds},
        }
    )
    assert isinstance(made, GenerateRecipe)
    return made


class Nothing:
    """An actor that returns a finished row at once, so that only Ray is left."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        """Keep the manifest that every row gets."""
        self.manifest = manifest

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the row that a maker would."""
        from factory.cluster.workers import column

        now = np.array([time.time()])
        return {
            "manifest": column(self.manifest),
            "actor": np.array(["nothing"]),
            "started": now,
            "finished": now,
        }


class Marks:
    """What the driver says of itself while it works: a mark at each turn of the work."""

    def __init__(self, tell: Connection, count: int) -> None:
        """Tell a watching process; `count` shards are expected."""
        self.tell, self.count, self.back = tell, count, 0

    def shard(self) -> None:
        """Note a shard that came back; the first and the last one are marks."""
        self.back += 1
        if self.back in (1, self.count):
            self.mark("first" if self.back == 1 else "last")

    def mark(self, name: str) -> None:
        """Tell the moment, this process's CPU seconds until now, and its memory in MiB.

        The highest resident memory until now counts the pages of Ray's object store that this
        process wrote; the memory of its own, at this moment, does not.
        """
        memory = _memory("VmHWM"), _memory("RssAnon")
        self.tell.send((name, time.perf_counter(), time.process_time(), *memory))


def drive(tell: Connection, count: int, actors: int, url: str, seconds: float) -> None:
    """Do the work of a cell, as `factory generate` and `factory verify` do it."""
    from factory.cluster.connect import connect

    recipe, marks = recipe_of(count, actors, seconds), Marks(tell, count)
    connect("")
    if url:
        generate_and_verify(recipe, url, marks)
    else:
        ray_alone(recipe, marks)
    marks.mark("end")


def generate_and_verify(recipe: GenerateRecipe, url: str, marks: Marks) -> None:
    """Make, merge and verify a dataset on the connected Ray; FaultError if it is not whole."""
    from factory.cluster.ranges import over_tasks
    from factory.datasets.claim import write_claim
    from factory.datasets.provenance import versions
    from factory.datasets.store import Store
    from factory.datasets.verify import verify
    from factory.generation.bank import fill_bank
    from factory.generation.run import generate
    from factory.recipe import content_digest

    store = Store(url)
    marks.mark("begin")
    with store.lock("benchmark") as lock:

        def back() -> None:
            lock.check()
            marks.shard()

        write_claim(store, recipe, content_digest(recipe, versions()), ())
        fill_bank(recipe, store, lambda line: None)
        marks.mark("banked")
        generate(recipe, store, (), lambda line: None, back)
        marks.mark("merged")
    faults = verify(store, spread=over_tasks)
    marks.mark("verified")
    if faults:
        raise FaultError(f"{store.url}: {len(faults)} faults, the first {faults[0]}")


def ray_alone(recipe: GenerateRecipe, marks: Marks) -> None:
    """Pass the rows of a recipe's shards through a pool that does nothing with them."""
    from benchmarks.shards import manifest_of
    from factory.cluster.workers import ActorPool, flow
    from factory.nodes import makers

    first, *_ = planned = list(shards(recipe))
    manifest = manifest_of(first, "0" * 64, 9216, b"").model_dump(mode="json")
    workers = recipe.workers
    pool = ActorPool("Make", Nothing, (manifest,), makers(workers), workers.least)
    marks.mark("banked")
    for _ in flow(({"shard": shard} for shard in planned), [pool], ""):
        marks.shard()


def _memory(field: str) -> float:
    """Return a field of this process's memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024
