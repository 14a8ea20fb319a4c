"""Actor pools on Ray Data; only this module and `connect` import `ray.data`.

Ray schedules and does not decide (docs/contracts.md 6): callers cut the work into rows, and the
result of a row depends on the row alone. Rows pass through one pool after another. Ray keeps the
number of actors of a pool between a smallest and a largest one.
"""

import gc
import os
import pickle
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from factory.cluster.capacity import require
from factory.cluster.tries import AGAIN, Tries
from factory.cluster.waiting import wait_for_pool
from factory.cluster.watch import FlowWatch
from factory.nodes import Reservation
from factory.recipe import FaultError, InputError, public

PORTION = 1000  # rows that Ray is handed in one object
WINDOW_ROWS, WINDOW_BYTES = 100_000, 1 << 28  # see `flow`
AHEAD = 32.0  # rows that wait for a pool, as a multiple of those that its actors have in hand
SPINS = "100000"  # turns of a waiting OpenMP thread before it sleeps
REFUSED, FAILED = "refused", "failed"  # columns of a row that holds an error instead of a result
PASSAGE = "passage"  # column of a row on its way, see `Followed`
PACKED = "packed"  # column of rows on their way to the first pool
LEFT_OUT = "left_out"  # column of a row that was tried too often: what is said of it
LOAD = "load"  # the stage in which an actor is made
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


class Followed(Guarded):
    """A guarded actor that notes what it begins, and so counts the processes that ended at a row.

    A row has the column PASSAGE besides its own, for the watch.
    """

    def __init__(self, tries: Tries, stage: str, actor: type, *arguments: Any) -> None:
        """Make the actor, unless its process ended there too often."""
        self.tries, self.stage = tries, stage
        mine = ray.get_runtime_context().get_actor_id() or ""  # the same in each process of it
        if tries.begin(LOAD, mine) > AGAIN:
            where = f"node {socket.gethostname()}"
            said = f"{where}: the process of an actor ended {AGAIN + 1} times while it was made"
            self.report = {FAILED: column(said)}
        else:
            super().__init__(actor, *arguments)
        tries.end(LOAD, mine)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the actor's row for a row, or one that holds an error or was tried too often."""
        if self.report or {REFUSED, FAILED, LEFT_OUT} & set(batch):
            return self.report or batch
        (passage,) = batch.pop(PASSAGE)
        ended = self.tries.begin(self.stage, passage.row, passage.size)
        if ended > AGAIN:
            self.tries.end(self.stage, passage.row)
            said = f"{passage.row}: {AGAIN + 1} processes ended at it ({self.stage})"
            return {LEFT_OUT: column(said)}
        started = time.monotonic()
        row = super().__call__(batch)
        passage = passage.through(self.stage, time.monotonic() - started, ended)
        self.tries.end(self.stage, passage.row)
        return row | {PASSAGE: column(passage)}


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
    first = next(left, None)
    if first is None:
        return
    require([reserved])
    pool = ActorPool(actor.__name__, actor, (assignment,), reserved, reserved.size)
    yield from flow(chain([first], left), [pool], "")


def flow(
    rows: Iterable[dict[str, Any]],
    pools: Sequence[ActorPool],
    what: str,
    watch: FlowWatch | None = None,
) -> Iterator[dict[str, Any]]:
    """Run rows through pools of actors, a window of rows at a time; rows come back in any order.

    Ray is handed a portion of rows in one object, and a task of its takes a portion apart as fast
    as the first pool takes rows, so the driver keeps little of a row that is not on its way. Actors
    start again with each window, which ends before what is handed over fills Ray's object store
    (docs/contracts.md 7).

    Args:
        rows: one dictionary for each call of the first pool's actor.
        pools: the pools in the order in which a row passes through them.
        what: words before an error's text.
        watch: names the rows and keeps what is said of them.

    Raises:
        InputError: an actor found a mistake of the user's.
        FaultError: a disk, store or GPU failed, or a row was tried too often and the watch leaves
            none out.
    """
    watch = FlowWatch() if watch is None else watch
    _keep_little()
    wait_for_pool(pools[0].reserved, pools[0].least)
    with watch.watching():
        yield from _flow(rows, pools, what, watch)


def _keep_little() -> None:
    """Have Ray Data's driver keep as much of a dataset at its end as at its beginning.

    It would keep statistics of every block, which only `Dataset.stats()` reads, and would let rows
    queue for a pool until they fill half the object store, which a hundred thousand small ones do
    not. Ray 2.60 has no setting for the first, and for the second one that is read once, at import.
    A Ray that has moved these names makes the same dataset, in a driver that grows.
    """
    with suppress(ImportError):
        from ray.data._internal.execution.backpressure_policy import (
            DownstreamCapacityBackpressurePolicy as Policy,
        )
        from ray.data._internal.execution.operators import map_operator

        map_operator.to_stats = lambda metadata: []
        Policy.OBJECT_STORE_BUDGET_UTIL_THRESHOLD = 0.0
    ray.data.DataContext.get_current().downstream_capacity_backpressure_ratio = AHEAD


def _flow(
    rows: Iterable[dict[str, Any]], pools: Sequence[ActorPool], what: str, watch: FlowWatch
) -> Iterator[dict[str, Any]]:
    left = ({**row, PASSAGE: watch.passage(row)} for row in rows)
    while (data := _handed(left)) is not None:
        for pool in pools:
            data = _through(data, pool, watch.tries)
        for row in _rows(data):
            if REFUSED in row:
                raise InputError(str(row[REFUSED]))
            if LEFT_OUT in row and watch.leaves_out:
                watch.leave_out(str(row[LEFT_OUT]))
                continue
            if FAILED in row or LEFT_OUT in row:
                said = row.get(FAILED) or row[LEFT_OUT]
                raise FaultError(f"{what}{said}; the same command goes on from here")
            watch.done(row.pop(PASSAGE))
            yield row
        gc.collect()  # Ray's objects of a finished dataset refer to each other


def _handed(left: Iterator[dict[str, Any]]) -> Any:
    """Return a dataset of the next window's rows, a block each; None if no row is left."""
    portions, rows, size = [], 0, 0
    while rows < WINDOW_ROWS and size < WINDOW_BYTES and (part := list(islice(left, PORTION))):
        if not portions and len(part) < PORTION:  # so few that a task for them is not worth it
            return ray.data.from_items(part, override_num_blocks=len(part))
        packed = [pickle.dumps(row) for row in part]
        portions.append(ray.put(pa.table({PACKED: packed})))
        rows, size = rows + len(packed), size + sum(map(len, packed))
    if not portions:
        return None
    data = ray.data.from_arrow_refs(portions)
    data.context.target_max_block_size = 1  # a row a block
    return data.map_batches(
        _unpacked,
        batch_size=None,
        batch_format="numpy",
        compute=TaskPoolStrategy(size=1),  # without a CPU, Ray would start one for each portion
        num_cpus=0,
    )


def _unpacked(batch: Any) -> Iterator[dict[str, np.ndarray]]:
    for packed in batch[PACKED]:
        yield {name: column(value) for name, value in pickle.loads(packed).items()}


def _rows(data: Any) -> Iterator[dict[str, Any]]:
    """Yield each row as soon as it is there: `iter_rows` would hold it until there is another."""
    for batch in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for at in range(len(next(iter(batch.values()), ()))):
            yield {name: values[at] for name, values in batch.items()}


def _through(data: Any, pool: ActorPool, tries: Tries) -> Any:
    reserved = pool.reserved
    return data.map_batches(
        type(pool.name, (Followed,), {}),
        fn_constructor_args=(tries, pool.name, pool.actor, *pool.arguments),
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
