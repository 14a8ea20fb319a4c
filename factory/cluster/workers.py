"""Actor pools on Ray Data: the one module that imports `ray.data`.

Ray schedules, it does not decide: callers cut the work into rows, and what a row becomes depends on
the row alone. Rows pass through one pool after another; a pool has between two numbers of actors.
"""

import gc
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from factory.cluster.capacity import Reservation, require
from factory.recipe import FaultError, InputError, public

WINDOW_ROWS, WINDOW_TURNS = 1000, 50  # see `flow`
SPINS = "100000"  # turns of a waiting OpenMP thread before it sleeps
REFUSED, FAILED = "refused", "failed"  # columns of a row that says why there is nothing else
REPORTED = (InputError, FaultError, OSError, torch.OutOfMemoryError)  # by a worker, as such a row


@dataclass(frozen=True)
class ActorPool:
    """A pool of actors that rows pass through.

    Attributes:
        name: of the pool, as Ray's dashboard shows it; a Python name.
        actor: a class whose instances map a batch of one row, {name: array of one}, to another.
        arguments: what each actor is made with.
        reserved: how many there are at most, and what one of them reserves.
        least: how many there are from the start; Ray adds and removes actors between the two.
        threads: CPU threads of one actor.
    """

    name: str
    actor: type
    arguments: tuple[Any, ...]
    reserved: Reservation
    least: int
    threads: int = 1


def runtime_env(threads: int) -> dict[str, Any]:
    """Return the environment of an actor: Ray would set one OpenMP thread and busy waiting.

    Threads that wait sleep, but not at once: waking them hundreds of times a step costs more than
    the fraction of a millisecond for which they look.
    """
    variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return {"env_vars": variables | {"GOMP_SPINCOUNT": SPINS}}


class Guarded:
    """An actor whose errors become rows, which every later actor passes on.

    As exceptions they would reach the user as a traceback of Ray's. An actor that could not be made
    says so when it is handed its first row.
    """

    def __init__(self, actor: type, *arguments: Any) -> None:
        """Make the actor."""
        self.report: dict[str, np.ndarray] = {}
        try:
            self.actor = actor(*arguments)
        except REPORTED as error:
            self.report = reported(error, f"node {socket.gethostname()}: ")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Take one row through the actor."""
        if self.report or REFUSED in batch or FAILED in batch:
            return self.report or batch
        try:
            return self.actor(batch)
        except REPORTED as error:
            return reported(error, "")


def reported(error: Exception, what: str) -> dict[str, np.ndarray]:
    """Return a row that says what went wrong, and by its column whether the user can mend it."""
    said = " ".join(public(str(error)).split())
    if isinstance(error, torch.OutOfMemoryError):
        said = f"a GPU ran out of memory; lower sampler.batch_size, or raise num_gpus ({said})"
    return {REFUSED if isinstance(error, InputError) else FAILED: column(f"{what}{said}")}


def column(value: Any) -> np.ndarray:
    """Return a column of one row that holds any value."""
    made = np.empty(1, object)
    made[0] = value
    return made


def each(
    rows: list[dict[str, Any]], actor: type, assignment: Any, reserved: Reservation
) -> Iterator[dict[str, Any]]:
    """Run an actor over rows, one row a call, on a pool of actors.

    Args:
        rows: one dictionary a call; what they hold is pickled.
        actor: a class whose instances map a batch of one row, {name: array of one}, to another.
        assignment: the one argument each actor is made with.
        reserved: how many actors, and what one of them reserves.

    Raises:
        InputError: the cluster cannot hold so many actors, or an actor found a mistake of the
            user's, as weights that are not on its node.
        FaultError: a disk, store or GPU failed, or an actor left a row {"failed": why}.
    """
    if not rows:
        return
    require([reserved])
    pool = ActorPool(actor.__name__, actor, (assignment,), reserved, reserved.size)
    yield from flow(rows, [pool], "")


def flow(
    rows: Iterable[dict[str, Any]], pools: Sequence[ActorPool], what: str
) -> Iterator[dict[str, Any]]:
    """Run rows through pools of actors, a window of rows at a time; rows come back in any order.

    What Ray keeps of a row stays in the driver until its dataset is done (about 15 kB), so only so
    many are handed over at once, but enough that starting the actors again costs little.

    Args:
        rows: one dictionary a call of the first pool's actor.
        pools: in the order a row passes through them.
        what: words before an error's.

    Raises:
        InputError: an actor found a mistake of the user's.
        FaultError: a disk, store or GPU failed.
    """
    window = max(WINDOW_ROWS, WINDOW_TURNS * sum(pool.reserved.size for pool in pools))
    left = iter(rows)
    while handed := list(islice(left, window)):
        data = ray.data.from_items(handed, override_num_blocks=len(handed))
        for pool in pools:
            data = _through(data, pool)
        for row in data.iter_rows():
            if REFUSED in row:
                raise InputError(str(row[REFUSED]))
            if FAILED in row:
                raise FaultError(f"{what}{row[FAILED]}; the same command goes on from here")
            yield row
        gc.collect()  # Ray's notes on a finished dataset refer to each other


def _through(data: Any, pool: ActorPool) -> Any:
    reserved = pool.reserved
    return data.map_batches(
        type(pool.name, (Guarded,), {}),
        fn_constructor_args=(pool.actor, *pool.arguments),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(
            min_size=pool.least,
            max_size=reserved.size,
            max_tasks_in_flight_per_actor=2,
        ),
        num_cpus=reserved.num_cpus,
        num_gpus=reserved.num_gpus or None,
        runtime_env=runtime_env(pool.threads),
    )
