"""Actor pools on Ray Data; only this module and `connect` import `ray.data`.

Ray schedules and does not decide (docs/contracts.md 6): callers cut the work into rows, and the
result of a row depends on the row alone. Rows pass through one pool after another. Ray keeps the
number of actors of a pool between a smallest and a largest one.
"""

import gc
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from factory.cluster.capacity import Reservation, require
from factory.cluster.waiting import wait_for
from factory.recipe import FaultError, InputError, public

WINDOW_ROWS, WINDOW_TURNS = 2000, 50  # see `flow`
SPINS = "100000"  # turns of a waiting OpenMP thread before it sleeps
REFUSED, FAILED = "refused", "failed"  # columns of a row that holds an error instead of a result
HANDED_ON = ("FACTORY_SYSTEMS",)  # the driver's environment that actors need, too
REPORTED = (InputError, FaultError, OSError, torch.OutOfMemoryError)  # errors that become such rows


@dataclass(frozen=True)
class ActorPool:
    """A pool of actors that rows pass through.

    Attributes:
        name: the pool's name on Ray's dashboard; a Python identifier.
        actor: a class whose instances map a batch of one row, {name: array of one}, to another.
        arguments: the arguments of each actor's constructor.
        reserved: the largest number of actors, and what one of them reserves.
        least: the number of actors at the start and the smallest one; Ray adds and removes actors.
        threads: CPU threads of one actor.
    """

    name: str
    actor: type
    arguments: tuple[Any, ...]
    reserved: Reservation
    least: int
    threads: int = 1


def runtime_env(threads: int) -> dict[str, Any]:
    """Return the environment of an actor, where Ray would set one OpenMP thread and busy waiting.

    Waiting threads sleep, but they spin for a fraction of a millisecond before, because waking them
    hundreds of times a step costs more.
    """
    variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    handed = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    return {"env_vars": variables | {"GOMP_SPINCOUNT": SPINS} | handed}


class Guarded:
    """An actor whose errors become rows, which later actors pass on unchanged.

    As exceptions they would reach the user as a traceback from Ray. An error in the actor's
    constructor is reported at its first row.
    """

    def __init__(self, actor: type, *arguments: Any) -> None:
        """Make the actor, or keep the error."""
        self.report: dict[str, np.ndarray] = {}
        try:
            self.actor = actor(*arguments)
        except REPORTED as error:
            self.report = reported(error, f"node {socket.gethostname()}: ")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the actor's row for a row, or a row that holds an error."""
        if self.report or REFUSED in batch or FAILED in batch:
            return self.report or batch
        try:
            return self.actor(batch)
        except REPORTED as error:
            return reported(error, "")


def reported(error: Exception, what: str) -> dict[str, np.ndarray]:
    """Return a row with an error's text: in REFUSED if the user can mend it, else in FAILED."""
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
    rows: Iterable[dict[str, Any]], actor: type, assignment: Any, reserved: Reservation
) -> Iterator[dict[str, Any]]:
    """Run an actor over rows, one row a call, on a pool of actors.

    Args:
        rows: one dictionary a call; its values are pickled. They are taken a window at a time.
        actor: a class whose instances map a batch of one row, {name: array of one}, to another.
        assignment: the one argument of each actor's constructor.
        reserved: the number of actors, and what one of them reserves.

    Raises:
        InputError: the cluster cannot hold so many actors, or an actor found a mistake of the
            user's, such as weights that are missing on its node.
        FaultError: a disk, store or GPU failed, or an actor returned a row {"failed": why}.
    """
    left = iter(rows)
    for first in left:
        require([reserved])
        pool = ActorPool(actor.__name__, actor, (assignment,), reserved, reserved.size)
        yield from flow(chain([first], left), [pool], "")


def flow(
    rows: Iterable[dict[str, Any]], pools: Sequence[ActorPool], what: str
) -> Iterator[dict[str, Any]]:
    """Run rows through pools of actors, a window of rows at a time; rows come back in any order.

    Ray keeps about 5 kB of each row in the driver until its dataset is done, so only a window of
    rows is handed over at once (docs/contracts.md 7). A window is large enough that starting the
    actors again costs little.

    Args:
        rows: one dictionary for each call of the first pool's actor.
        pools: the pools in the order in which a row passes through them.
        what: words before an error's text.

    Raises:
        InputError: an actor found a mistake of the user's.
        FaultError: a disk, store or GPU failed.
    """
    wait_for(pools[0].reserved)
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
        gc.collect()  # Ray's objects of a finished dataset refer to each other


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
