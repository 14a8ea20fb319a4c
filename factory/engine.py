"""Generation on Ray Data actor pools: the one module that imports `ray.data`.

Ray schedules, it does not decide (design contract 6): the plan cuts the shards, every random draw
is keyed by position, and a shard is one row. Fused or split, one actor or many, interrupted or not,
the same stage objects run in the same order and write the same bytes.
"""

import gc
import logging
import math
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray._private import services
from ray.data import ActorPoolStrategy

from factory import hardware, identities, metrics, stops
from factory.identities import Bank
from factory.plan import Extent, Shard, shards
from factory.provenance import models, versions
from factory.recipe import (
    FaultError,
    GenerateRecipe,
    InputError,
    bank_digest,
    content_digest,
    parse,
    public,
)
from factory.shards.claim import check_claim, write_claim
from factory.shards.manifest import DatasetManifest, Inherited, committed, inherited, merge
from factory.shards.store import Lock, Store
from factory.stages.line import Assignment, Line
from factory.stages.screen import known_faces
from factory.stages.work import ShardWork
from factory.systems import create

BANK_BLOCK = 64  # candidates one task draws; fixed, since batch size changes last bits
COMMIT_BLOCKS = 32  # drawn between two commits of a bank; fixed, so that its files have fixed names
WINDOW_SHARDS, WINDOW_TURNS = 1000, 50  # see `_windows`
SPINS = "100000"  # turns of a waiting OpenMP thread before it sleeps
DRAWS_PER_IDENTITY = 50  # a bank that rejects more than this is asked for what there is not
SHORT = ("/tmp", "/var/tmp", "/dev/shm")  # where Ray's sockets go when TMPDIR is too long
GROWS_TO = "FACTORY_GROWS_TO"  # see `grows_to`
# How long a local Ray may take to start, and Ray's own name for a user's other wish.
START_SEC, START_SETTING = 120, "RAY_raylet_start_wait_time_s"
REQUEST_SEC = "5"
LATE = "timed out during startup"  # in Ray's error
LOG_SETTING = "RAY_BACKEND_LOG_LEVEL"
SOCKET_BYTES = 107  # of a unix socket's path
SOCKETS = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # below Ray's folder
REFUSED, FAILED = "refused", "failed"  # columns of a row that says why there is nothing else
REPORTED = (InputError, FaultError, OSError, torch.OutOfMemoryError)  # by a worker, as such a row


def connect(address: str) -> None:
    """Join the Ray cluster at `address`, or start a local one where it is empty.

    Where RAY_ADDRESS is set, as Ray does in a submitted job, its cluster is joined. One that was
    started on this machine is not joined by itself: Ray would wait without end for one that is
    gone.

    Raises:
        InputError: no cluster answers at the address, or TMPDIR is too long for a local one.
        FaultError: a local one did not start in time.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    seconds, begun = _start_seconds(), time.monotonic()
    joined = bool(address or os.environ.get("RAY_ADDRESS"))
    others = stops.below()
    try:
        while not ray.is_initialized():
            try:
                with _quiet(), nullcontext() if joined else _patient(begun + seconds):
                    ray.init(
                        address=address or (None if joined else "local"),
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        include_dashboard=None if address else False,
                        _temp_dir=None if joined else _below(),
                    )
                break
            except ConnectionError as error:
                raise InputError(
                    f"--address {address!r}: no Ray cluster answers there ({error})"
                ) from error
            except Exception as error:  # Ray has no class of its own for it
                if LATE not in str(error):
                    raise
                stops.kill(stops.below() - others)  # the rest of the Ray that did not start
                if time.monotonic() - begun >= seconds:
                    raise FaultError(
                        f"Ray did not start within {seconds} s; is the machine busy? the same "
                        f"command tries again; {START_SETTING} gives it more seconds"
                    ) from error
    finally:
        stops.install()


def started_here() -> bool:
    """Tell whether this process started the Ray it is connected to, which has its environment."""
    node = ray._private.worker._global_node
    return node is not None and node.head


def _start_seconds() -> int:
    said = os.environ.get(START_SETTING) or str(START_SEC)
    if not said.isdecimal():
        raise InputError(f"{START_SETTING} {said!r}: accepted is a whole number of seconds")
    return int(said)


@contextmanager
def _patient(until: float) -> Iterator[None]:
    """Give a Ray that is started in the block time before it counts as failed.

    Its 30 s are written into its code, so the question that it repeats for 30 s becomes one that is
    repeated for longer, but not once its raylet is gone: that one gives up after 15 s without an
    agent, which no setting changes (ray-project/ray, issue 65983), and only a new start helps. What
    Ray has a setting for is how long one request waits; it is short, since one that was made too
    early gets no answer at all.

    Args:
        until: monotonic seconds.
    """
    once = services.get_node

    def get_node(*given: Any) -> Any:
        while True:
            try:
                return once(*given)
            except RuntimeError as error:
                if time.monotonic() >= until or not _raylet():
                    raise Exception(LATE) from error  # as Ray itself, which repeats others

    services.get_node = get_node
    os.putenv(START_SETTING, REQUEST_SEC)  # as in `_quiet`
    try:
        yield
    finally:
        services.get_node = once
        os.unsetenv(START_SETTING)
        if START_SETTING in os.environ:
            os.putenv(START_SETTING, os.environ[START_SETTING])


def _raylet() -> bool:
    """Tell whether a raylet that this process started is alive."""
    for process in stops.below():
        with suppress(OSError):  # it has just ended
            if Path(f"/proc/{process}/comm").read_text() == "raylet\n":
                return True
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Start Ray in the block, of whose core this process then shows fatal errors only.

    Ray Data hands every actor of a pool references to its transformation, and Ray's core reports
    each such actor as an error (ray-project/ray, issue 57733): no argument of ours is small enough.
    Its errors reach this process as exceptions as well. `os.putenv` sets what the core in this
    process reads, and leaves alone `os.environ`, which the processes of a local Ray are given. The
    core says on stderr that it has read it: of what is written there meanwhile, all but that line
    is shown after the block.
    """
    if LOG_SETTING in os.environ:
        yield
        return
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        os.putenv(LOG_SETTING, "fatal")
        try:
            yield
        finally:
            os.unsetenv(LOG_SETTING)
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            os.write(2, b"".join(line for line in held if LOG_SETTING.encode() not in line))


def _below() -> str | None:
    """Return where a local Ray keeps its files, the usual folder (None) where sockets fit there.

    Raises:
        InputError: no folder with a short path can be had.
    """
    usual = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if _fits(f"{usual}/ray"):
        return None
    for parent in SHORT:
        folder = f"{parent}/factory-{os.getuid()}"
        with suppress(OSError):
            os.makedirs(folder, 0o700, exist_ok=True)
            found = os.lstat(folder)
            own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if own and not found.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK):
                return f"{folder}/ray"  # which Ray opens to everybody
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    most = SOCKET_BYTES - len(f"/ray/{SOCKETS}")
    raise InputError(
        f"{name} {usual}: too long for Ray's sockets; accepted are paths of {most} bytes or fewer"
    )


def _fits(folder: str) -> bool:
    return len(os.fsencode(f"{folder}/{SOCKETS}")) <= SOCKET_BYTES


def preflight(recipe: GenerateRecipe) -> None:
    """Refuse a recipe whose actor pools the connected cluster can never schedule."""
    require([(c.field, c.size, c.num_cpus, c.num_gpus) for c in wiring(recipe)])


def require(reserved: list[tuple[str, int, float, float]]) -> None:
    """Refuse, before anything starts, what the cluster can never schedule.

    An impossible request would otherwise wait without a word.

    Args:
        reserved: (recipe field, actors, num_cpus of one, num_gpus of one) of each pool.

    Raises:
        InputError: no node is large enough for one actor, or the pools do not fit together.
    """
    nodes = _nodes()
    for kind in ("CPU", "GPU"):
        largest = max((resources.get(kind, 0.0) for resources, _ in nodes), default=0.0)
        total = sum(count * resources.get(kind, 0.0) for resources, count in nodes)
        each = [
            (name, size, cpus if kind == "CPU" else gpus) for name, size, cpus, gpus in reserved
        ]
        for name, _, wanted in each:
            if wanted > largest:
                hint = "" if largest else f"; a cluster that grows says by {GROWS_TO} to what"
                raise InputError(
                    f"recipe field {name}num_{kind.lower()}s: {wanted:g}, but the largest node of "
                    f"the cluster has {largest:g} {kind}; accepted is 0 to {largest:g}{hint}"
                )
        together = sum(size * wanted for _, size, wanted in each)
        if together > total + 1e-6:
            fields = ", ".join(f"{name}size {size} x {wanted:g}" for name, size, wanted in each)
            raise InputError(
                f"recipe field {fields}: {together:g} {kind} together, but the cluster has "
                f"{total:g}"
            )


def _nodes() -> list[tuple[dict[str, float], int]]:
    """Return what nodes have and how many there are: those alive, or what the cluster grows to."""
    said = os.environ.get(GROWS_TO, "")
    return grows_to(said) if said else [(n["Resources"], 1) for n in ray.nodes() if n["Alive"]]


def grows_to(said: str) -> list[tuple[dict[str, float], int]]:
    """Read what an autoscaling cluster may grow to, which Ray's autoscaler tells nobody.

    Args:
        said: of each group of nodes COUNTxCPUS or COUNTxCPUS+GPUS, as in 8x16,16x16+1: the value
            of the environment variable FACTORY_GROWS_TO, which the cluster sets on its nodes.

    Returns:
        What one node of each group has, and how many of them there may be.

    Raises:
        InputError: it is written in another way.
    """
    groups = []
    for group in said.split(","):
        found = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+))?", group.strip())
        if found is None:
            raise InputError(
                f"{GROWS_TO} {said!r}: accepted is COUNTxCPUS+GPUS, as in 8x16,16x16+1"
            )
        count, cpus, gpus = (int(part or 0) for part in found.groups())
        groups.append(({"CPU": float(cpus), "GPU": float(gpus)}, count))
    return groups


def runtime_env(threads: int) -> dict[str, Any]:
    """Return the environment of an actor: Ray would set one OpenMP thread and busy waiting.

    Threads that wait sleep, but not at once: waking them hundreds of times a step costs more than
    the fraction of a millisecond for which they look.
    """
    variables = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return {"env_vars": variables | {"GOMP_SPINCOUNT": SPINS}}


class StageActor:
    """A line of stages as a Ray Data actor: one row in, one row out."""

    def __init__(self, assignment: Assignment, stages: tuple[str, ...]) -> None:
        """Load what the named stages need, once."""
        self.line = Line(assignment, stages)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Take one row, a ShardWork, through the stages; a committed shard leaves its manifest.

        What goes wrong is reported with the shard's name.
        """
        (work,) = batch["work"]
        started = time.time()
        try:
            done = self.line(work)
        except REPORTED as error:
            return _report(error, f"shard {work.shard.name}: ")
        if isinstance(done, ShardWork):
            return {"work": _column(done)}
        return {
            "manifest": _column(done.model_dump(mode="json")),
            "actor": np.array([ray.get_runtime_context().get_actor_id()]),
            "started": np.array([started]),
            "finished": np.array([time.time()]),
        }


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
            self.report = _report(error, f"node {socket.gethostname()}: ")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Take one row through the actor."""
        if self.report or REFUSED in batch or FAILED in batch:
            return self.report or batch
        try:
            return self.actor(batch)
        except REPORTED as error:
            return _report(error, "")


def _report(error: Exception, what: str) -> dict[str, np.ndarray]:
    """Return a row that says what went wrong, and by its column whether the user can mend it."""
    said = " ".join(public(str(error)).split())
    if isinstance(error, torch.OutOfMemoryError):
        said = f"a GPU ran out of memory; lower sampler.batch_size, or raise num_gpus ({said})"
    return {REFUSED if isinstance(error, InputError) else FAILED: _column(f"{what}{said}")}


def _column(value: Any) -> np.ndarray:
    column = np.empty(1, object)
    column[0] = value
    return column


@dataclass(frozen=True)
class Crew:
    """One actor pool: its stages, its size and what one actor reserves."""

    stages: tuple[str, ...]
    field: str
    size: int
    num_cpus: float
    num_gpus: float


def wiring(recipe: GenerateRecipe) -> list[Crew]:
    """Return the actor pools of a recipe, in the order a shard passes through them.

    Fused, one pool does everything. Split, rendering and screening alternate, one pair of pools an
    attempt; pools of later attempts have one actor, since only rejected slots reach them.
    """
    pool, screens = recipe.pool, recipe.screens
    rules = (screens.identity_drift, screens.near_duplicate, screens.real_lookalike)
    screened = any(rule is not None for rule in rules)
    attempts = range(screens.max_attempts if screened else 1)
    tries = [(f"styles:{n}", "render", "screen") for n in attempts]
    if pool.fused:
        stages = ("identities", *(stage for one in tries for stage in one), "commit")
        return [Crew(stages, "pool.", pool.size, pool.num_cpus, pool.num_gpus)]
    crews = []
    for attempt, (styles, render, screen) in enumerate(tries):
        first = ("identities",) if attempt == 0 else ()
        last = ("commit",) if attempt == attempts[-1] else ()
        size, screen_size = (1, 1) if attempt else (pool.size, pool.screen_size)
        crews += [
            Crew((*first, styles, render), "pool.", size, pool.num_cpus, pool.num_gpus),
            Crew(
                (screen, *last),
                "pool.screen_",
                screen_size,
                pool.screen_num_cpus,
                pool.screen_num_gpus,
            ),
        ]
    return crews


def _pooled(dataset: Any, actor: type, crew: Crew, threads: int, *arguments: Any) -> Any:
    named = type("".join(part.title() for part in crew.stages[0].split(":")[:1]), (Guarded,), {})
    return dataset.map_batches(
        named,
        fn_constructor_args=(actor, *arguments),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=crew.size, max_tasks_in_flight_per_actor=2),
        num_cpus=crew.num_cpus,
        num_gpus=crew.num_gpus or None,
        runtime_env=runtime_env(threads),
    )


def cpus() -> int:
    """Return the CPUs of the connected cluster, those that autoscaling may add included."""
    return max(int(sum(n * resources.get("CPU", 0.0) for resources, n in _nodes())), 1)


def gpus() -> float:
    """Return the GPUs of the connected cluster, those that autoscaling may add included."""
    return sum(n * resources.get("GPU", 0.0) for resources, n in _nodes())


def each(
    rows: list[dict[str, Any]],
    actor: type,
    assignment: Any,
    size: int,
    field: str,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Run an actor over rows, one row a call, on a pool of actors.

    Args:
        rows: one dictionary a call; what they hold is pickled.
        actor: a class whose instances map a batch of one row, {name: array of one}, to another.
        assignment: the one argument each actor is made with.
        size: actors.
        field: words before `size` in the error of a cluster that is too small.
        num_cpus: CPUs one actor reserves.
        num_gpus: GPUs one actor reserves.

    Raises:
        InputError: the cluster cannot hold so many actors, or an actor found a mistake of the
            user's, as weights that are not on its node.
        FaultError: a disk, store or GPU failed, or an actor left a row {"failed": why}.
    """
    if not rows:
        return
    require([(field, size, num_cpus, num_gpus)])
    crew = Crew((actor.__name__,), field, size, num_cpus, num_gpus)
    yield from _windows(rows, size, lambda data: _pooled(data, actor, crew, 1, assignment), "")


def _windows(
    rows: Iterable[dict[str, Any]], actors: int, pooled: Callable[[Any], Any], what: str
) -> Iterator[dict[str, Any]]:
    """Run rows through pools, a window at a time.

    InputError where one was refused; FaultError, begun with `what`, where one failed.

    What Ray keeps of a row stays in the driver until its dataset is done (about 15 kB), so only so
    many are handed over at once, but enough that starting the actors again costs little.
    """
    window = max(WINDOW_SHARDS, WINDOW_TURNS * actors)
    left = iter(rows)
    while handed := list(islice(left, window)):
        for row in pooled(ray.data.from_items(handed, override_num_blocks=len(handed))).iter_rows():
            if REFUSED in row:
                raise InputError(str(row[REFUSED]))
            if FAILED in row:
                raise FaultError(f"{what}{row[FAILED]}; the same command goes on from here")
            yield row
        gc.collect()  # Ray's notes on a finished dataset refer to each other


class BankActor:
    """Draws blocks of candidate contexts."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        """Load the system once."""
        parsed = parse(recipe)
        assert isinstance(parsed, GenerateRecipe)
        hardware.set_up(parsed.pool.threads, parsed.pool.num_gpus > 0)
        self.system = create(parsed)
        self.system.load()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Draw the candidates of one block: float32 [BANK_BLOCK, D]."""
        (block,) = batch["block"]
        indices = range(int(block) * BANK_BLOCK, (int(block) + 1) * BANK_BLOCK)
        return {"block": batch["block"], "contexts": self.system.draw_contexts(indices)[None]}


def fill_bank(
    recipe: GenerateRecipe,
    store: Store,
    say: Callable[[str], None],
    check_lock: Callable[[], None] = lambda: None,
) -> Bank:
    """Make the identity bank as long as the recipe asks for, and commit what is new.

    Blocks of candidates are drawn in parallel and judged in order, so that the bank does not depend
    on how many actors drew it. Identities that were committed before stay as they are, and those of
    every `COMMIT_BLOCKS` are committed before the next are judged.

    Args:
        recipe: what to make.
        store: the dataset's folder, locked by the caller.
        say: receives one line of progress at a time.
        check_lock: called before each commit; it raises where the folder is another writer's.

    Raises:
        InputError: weights are not on a worker's node, or not what they should be.
        FaultError: `identities.max_cosine` leaves too few candidates, or a store failed.
    """
    digest = bank_digest(recipe)
    bank = identities.load_bank(store, digest)
    wanted, start = recipe.identities.count, 0 if bank is None else len(bank)
    pool, raw = recipe.pool, recipe.model_dump(mode="json")
    while bank is None or len(bank) < wanted:
        drawn, have = (0, 0) if bank is None else (bank.drawn, len(bank))
        if drawn > DRAWS_PER_IDENTITY * wanted:
            raise FaultError(
                f"identities.max_cosine {recipe.identities.max_cosine} kept {have} of {drawn} "
                f"candidates, {wanted} identities are wanted; raise it or lower identities.count"
            )
        rate = max(have / drawn, 0.2) if drawn else 0.9
        first = drawn // BANK_BLOCK
        blocks = max(math.ceil((wanted - have) / rate / BANK_BLOCK), 1)
        rows = ({"block": first + n} for n in range(blocks))
        size = min(pool.size, blocks)
        crew = Crew(("bank",), "pool.", size, pool.num_cpus, pool.num_gpus)

        def pooled(dataset: Any, crew: Crew = crew) -> Any:
            return _pooled(dataset, BankActor, crew, pool.threads, raw)

        made = _windows(rows, size, pooled, f"output {store.url}: ")
        for candidate, contexts in _in_order(made, first):
            if bank is None:
                bank = identities.empty_bank(contexts.shape[1])
            if len(bank) == wanted:
                continue  # the pool ends what it was handed
            fresh = contexts[max(bank.drawn - candidate, 0) :]
            bank = identities.extend(bank, fresh, wanted, recipe.identities.max_cosine)
            say(f"identity bank: {len(bank)} of {wanted} identities from {bank.drawn} candidates")
            whole = bank.drawn % (COMMIT_BLOCKS * BANK_BLOCK) == 0 or len(bank) == wanted
            if whole and len(bank) > start:
                check_lock()
                identities.save_block(store, bank, start, digest)
                start = len(bank)
    return bank


def _in_order(rows: Iterable[dict[str, Any]], first: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the blocks that were drawn, joined up to the next commit, and their first candidate.

    Args:
        rows: one a block, in any order.
        first: the lowest block among them; the others follow it without a gap.
    """
    early: dict[int, np.ndarray] = {}
    ready: list[np.ndarray] = []
    start = due = first
    for row in rows:
        early[int(row["block"])] = np.asarray(row["contexts"]).astype(np.float32)
        while due in early:
            ready.append(early.pop(due))
            due += 1
            if due % COMMIT_BLOCKS == 0:
                yield start * BANK_BLOCK, np.concatenate(ready)
                start, ready = due, []
    if ready:
        yield start * BANK_BLOCK, np.concatenate(ready)


@dataclass
class Progress:
    """What a generation has done so far."""

    shards: int
    shards_done: int = 0
    images: int = 0
    kept: int = 0
    tried: int = 0
    started: float = field(default_factory=time.time)
    rows: list[tuple[str, float, float, int]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Count one committed shard."""
        manifest = row["manifest"]
        self.shards_done += 1
        self.images += manifest["kept"]
        self.kept += manifest["kept"]
        self.tried += manifest["kept"] + sum(manifest["reasons"].values())
        self.rows.append((row["actor"], row["started"], row["finished"], manifest["kept"]))

    def line(self, before: int) -> str:
        """Return one line: shards, images/s, kept share, time left; `before`: done earlier."""
        elapsed = max(time.time() - self.started, 1e-6)
        left = (self.shards - before - self.shards_done) * elapsed / max(self.shards_done, 1)
        return (
            f"shards {before + self.shards_done}/{self.shards}"
            f"  {self.images / elapsed:.1f} images/s"
            f"  kept {100 * self.kept / max(self.tried, 1):.1f} %  ETA {left:.0f} s"
        )


@dataclass(frozen=True)
class Generated:
    """The result of a generation: the dataset's manifest and what this run did of it."""

    manifest: DatasetManifest
    progress: Progress
    found: int


def check_sources(recipe: GenerateRecipe) -> Inherited | None:
    """Open what a generation reads, before any folder is touched.

    Returns:
        Models and licences of the datasets it is drawn from; None where there are none.

    Raises:
        InputError: weights, datasets or known faces that the recipe names are not what it says.
    """
    system = create(recipe)
    system.open()
    handed_down = inherited(system.origins())
    models(recipe.weights)
    known_faces(recipe)
    return handed_down


def fill(
    recipe: GenerateRecipe,
    lock: Lock,
    handed_down: Inherited | None,
    say: Callable[[str], None],
    extend: bool = False,
) -> Generated:
    """Claim a dataset's folder for a recipe and make what it lacks.

    Args:
        recipe: what to make; it states the sha256 of its weights (`provenance.pinned`) and its
            precision (`precision.settled`).
        lock: of the dataset's folder, held by the caller.
        handed_down: as `check_sources` returns it.
        say: receives one line of progress at a time.
        extend: whether a smaller dataset of the same recipe may grow.

    Raises:
        InputError: the store holds another recipe's dataset, or weights are not what the recipe
            says; or as `generate`.
        FaultError: as `generate`.
    """
    assert all(part.sha256 for part in recipe.weights.values()), "the digest would be blind"
    store, made_with = lock.store, versions()
    grown = check_claim(store, recipe, made_with, extend)
    digest = content_digest(recipe, made_with)
    write_claim(store, recipe, digest, grown, handed_down, models(recipe.weights))
    store.sweep()
    return generate(recipe, store, grown, say, lock.check)


def generate(
    recipe: GenerateRecipe,
    store: Store,
    grown: tuple[Extent, ...],
    say: Callable[[str], None],
    check_lock: Callable[[], None] = lambda: None,
) -> Generated:
    """Make every planned shard that is not committed yet, then merge the manifests.

    Args:
        recipe: what to make; checked, and claimed by the store (`shards.claim`).
        store: the dataset's folder, locked by the caller.
        grown: extents the dataset had before it was extended.
        say: receives one line of progress at a time.
        check_lock: called once a shard; it raises where the folder is another writer's by now.

    Raises:
        InputError: the cluster cannot schedule what the recipe reserves, or a worker found a
            mistake of the user's, as weights that are not on its node.
        FaultError: a disk, store or GPU failed for good, or a planned shard is missing at the end.
    """
    preflight(recipe)
    crews = wiring(recipe)
    system = create(recipe)
    if system.banked:
        for line in system.remarks(fill_bank(recipe, store, say, check_lock).contexts):
            say(line)
    done = committed(store)
    planned = sum(1 for _ in shards(recipe, grown))
    todo = [shard for shard in shards(recipe, grown) if shard.name not in done]
    found = planned - len(todo)
    progress = Progress(planned)
    if found:
        say(f"resuming: {found} of {planned} shards are committed")
    with stops.keeping(lambda: f"{len(committed(store))} of {planned} shards are committed"):
        for row in _run(recipe, store, crews, todo) if todo else ():
            check_lock()
            progress.add(row)
            made = row["manifest"]
            counts = made["kept"], made["reasons"], made["seconds"]
            metrics.shard(recipe.name, recipe.system, *counts)
            say(progress.line(found))
    done = committed(store)
    missing = [shard.name for shard in shards(recipe, grown) if shard.name not in done]
    if missing:
        raise FaultError(f"{len(missing)} planned shards are missing, the first {missing[0]}")
    return Generated(merge(store, shards(recipe, grown)), progress, found)


def _run(
    recipe: GenerateRecipe, store: Store, crews: list[Crew], todo: list[Shard]
) -> Iterator[dict[str, Any]]:
    made_with = versions()
    assignment = Assignment(
        recipe.model_dump(mode="json"), store, content_digest(recipe, made_with), made_with
    )

    def pooled(dataset: Any) -> Any:
        for crew in crews:
            dataset = _pooled(
                dataset, StageActor, crew, recipe.pool.threads, assignment, crew.stages
            )
        return dataset

    rows = ({"work": ShardWork(shard)} for shard in todo)
    yield from _windows(rows, sum(crew.size for crew in crews), pooled, f"output {store.url}: ")
