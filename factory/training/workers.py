"""The workers of a training on Ray Train, and the reports that they send to the driver.

All state is in the output's checkpoints. After the loss of a worker or of the driver, the next one
continues from the newest checkpoint.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from factory import stops
from factory.cluster.progress import ProgressLine, notice
from factory.datasets.store import Store, below
from factory.recipe import FaultError, FRRecipe, InputError, TrainRecipe, parse
from factory.training import checkpoint

SCRATCH = "ray"  # Ray Train's own files, below the output while the training runs
RELAY_SEC = 1.0
# Ray's words if a worker's host runs out of memory; torch's own errors are caught inside the step.
OUT_OF_MEMORY = ("OutOfMemoryError", "OUT_OF_MEMORY")

CPU = torch.device("cpu")

Row = dict[str, float]  # the numbers of a step, "step" among them


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together; by default the only one.

    Attributes:
        rank: its number.
        world: number of workers; with more than one, torch.distributed is initialised.
        device: the device of its network.
        note: sends to the driver the newest line, and the rows and names of pictures since the last
            call.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    note: Callable[[str, list[Row], list[str]], Any] = lambda line, rows, pictures: None


Loop = Callable[[Any, Store, Worker], dict[str, Any]]


def launch(
    loop: Loop,
    recipe: TrainRecipe | FRRecipe,
    out: str,
    row: Callable[[Row], None] = lambda row: None,
    picture: Callable[[str], None] = lambda name: None,
    check_lock: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run a training loop in the recipe's workers on the connected Ray cluster.

    Args:
        loop: a function at module level that trains. Each worker calls it with the recipe, the
            output and the worker.
        recipe: the recipe of the training.
        out: folder or URL of the output, reachable by all workers.
        row: is called in the driver with the numbers of each row, once for each step.
        picture: is called in the driver with the name of each picture in the output.
        check_lock: is called in the driver now and then. It raises FaultError if another writer
            took the output, which ends the training.

    Returns:
        The result of `loop` on rank 0.

    Raises:
        InputError: a worker found a mistake of the user's.
        FaultError: a worker reported a fault, or workers failed too often.
    """
    import ray
    from ray import train as ray_train
    from ray.train.torch import TorchConfig, TorchTrainer

    from factory.cluster.capacity import trainers
    from factory.cluster.waiting import wait_for
    from factory.cluster.workers import runtime_env
    from factory.training.absence import Absence, Losses

    wanted, root = recipe.engine, Store(out).root
    env = runtime_env(wanted.threads)
    if not wanted.num_gpus:
        env["env_vars"]["DS_ACCELERATOR"] = "cpu"
    wait_for(trainers(wanted))
    board = start_board()
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "loop": loop,
            "recipe": recipe.model_dump(mode="json"),
            "store": Store(out),
            "board": board,
            "folder": os.getcwd(),
        },
        torch_config=TorchConfig(backend="nccl" if wanted.num_gpus else "gloo"),
        scaling_config=ray_train.ScalingConfig(
            num_workers=wanted.workers,
            use_gpu=wanted.num_gpus > 0,
            resources_per_worker={"CPU": wanted.num_cpus}
            | ({"GPU": wanted.num_gpus} if wanted.num_gpus else {}),
        ),
        run_config=ray_train.RunConfig(
            name=f"run-{time.time_ns()}",
            storage_path=below(out, SCRATCH) if root is None else str(root / SCRATCH),
            failure_config=ray_train.FailureConfig(max_failures=wanted.max_failures),
            callbacks=[Losses(board, wanted.workers)],
            worker_runtime_env=env,
        ),
    )
    failure = ""

    def kept() -> str:
        return _kept(Store(out))

    absence = Absence(trainers(wanted), kept, notice)
    with (
        stops.keeping(kept, Store(out).sweep),
        _relayed(board, row, picture, check_lock, absence),
    ):
        try:
            _beside(trainer.fit)
        except ray_train.TrainingFailedError as error:
            failure = " ".join(str(error).split())
    check_lock()  # after a loss of the lock, the files belong to the other writer
    Store(out).clear(SCRATCH)
    fault = ray.get(board.fault.remote())
    if fault:
        raise (InputError if fault[0] == "input" else FaultError)(fault[1])
    if any(sign in failure for sign in OUT_OF_MEMORY):
        raise FaultError(f"training failed: a host ran out of memory; {lower(recipe)}")
    if failure:
        raise FaultError(f"training failed: {failure[-600:]}")
    return ray.get(board.summary.remote())


def _beside(fit: Callable[[], Any]) -> None:
    """Run a trainer in a thread of its own and wait for it.

    In the main thread Ray would handle Ctrl-C itself and take long to end.
    """
    ended: Future[None] = Future()

    def work() -> None:
        try:
            fit()
            ended.set_result(None)
        except BaseException as error:  # raised below
            ended.set_exception(error)

    threading.Thread(target=work, name="trainer", daemon=True).start()
    ended.result()


def _kept(store: Store) -> str:
    """Return the words about a stopped training's newest checkpoint."""
    step = checkpoint.latest(store)
    return "there is no checkpoint yet" if step is None else f"step {step} is the newest checkpoint"


def lower(recipe: TrainRecipe | FRRecipe) -> str:
    """Return what a user can change if memory is too small, the cheapest change first."""
    settings = recipe.engine.deepspeed
    ways = [f"raise engine.deepspeed.accumulation_steps ({settings.accumulation_steps})"]
    if not settings.activation_checkpointing:
        ways.append("set engine.deepspeed.activation_checkpointing")
    if recipe.engine.name == "deepspeed" and settings.zero_stage < 3:
        ways.append(f"raise engine.deepspeed.zero_stage ({settings.zero_stage})")
    if recipe.engine.name == "deepspeed" and recipe.engine.num_gpus and not settings.offload:
        ways.append("set engine.deepspeed.offload")
    return f"{', '.join(ways)}, or lower schedule.batch_size ({recipe.schedule.batch_size})"


class Board:
    """Carries lines, numbers and faults from the workers to the driver."""

    def __init__(self) -> None:
        """Start empty."""
        self.line = ""
        self.rows: list[Row] = []
        self.pictures: list[str] = []
        self.result: dict[str, Any] = {}
        self.error: tuple[str, str] | None = None
        self.present: set[int] = set()
        self.losses: list[str] = []

    def begin(self, rank: int) -> tuple[str, str] | None:
        """Count a worker as present; return the fault, after which it must end."""
        self.present.add(rank)
        return self.error

    def lose(self, words: str) -> None:
        """Take words about workers that ended early; all start again, unless there is a fault."""
        if self.error is None:
            self.present.clear()
            self.losses.append(words)

    def attendance(self) -> tuple[list[str], int]:
        """Hand over the words about losses since the last call; count the workers present."""
        losses, self.losses = self.losses, []
        return losses, len(self.present)

    def note(self, line: str, rows: list[Row], pictures: list[str]) -> tuple[str, str] | None:
        """Take the newest line, and add rows and pictures to those not yet handed over.

        Returns:
            The fault, as `fault` returns it, after which a worker must end.
        """
        self.line = line
        self.rows += rows
        self.pictures += pictures
        return self.error

    def take(self) -> tuple[str, list[Row], list[str]]:
        """Hand over the line, and the rows and pictures since the last call."""
        rows, self.rows = self.rows, []
        pictures, self.pictures = self.pictures, []
        return self.line, rows, pictures

    def finish(self, result: dict[str, Any]) -> None:
        """Take the summary of a finished training."""
        self.result = result

    def summary(self) -> dict[str, Any]:
        """Return the summary."""
        return self.result

    def fail(self, kind: str, message: str) -> None:
        """Take a fault that a retry cannot mend; the first one counts."""
        self.error = self.error or (kind, message)

    def fault(self) -> tuple[str, str] | None:
        """Return (kind, message) of the fault, or None; the kind is `input` or `run`."""
        return self.error


def start_board() -> Any:
    """Start a board as an actor on the driver's node, so that only the driver's loss ends it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


@contextmanager
def _relayed(
    board: Any,
    row: Callable[[Row], None],
    picture: Callable[[str], None],
    check_lock: Callable[[], None],
    absence: Callable[[list[str], int], None] = lambda losses, present: None,
) -> Iterator[None]:
    """Show the board's line, and pass on new rows, pictures and losses, while the block waits."""
    import ray

    ended = threading.Event()
    show = ProgressLine()
    seen = 0.0

    def relay() -> None:
        nonlocal seen
        line, rows, pictures = ray.get(board.take.remote())
        for numbers in rows:
            if numbers["step"] > seen:  # a restarted worker sends old rows again
                seen = numbers["step"]
                row(numbers)
        for name in pictures:
            picture(name)
        if line:
            show(line)
        absence(*ray.get(board.attendance.remote()))

    def follow() -> None:
        while not ended.wait(RELAY_SEC):
            try:
                check_lock()
            except FaultError as error:  # workers get it from their next note and end
                ray.get(board.fail.remote("run", str(error)))
                return
            relay()

    thread = threading.Thread(target=follow, name="relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        relay()


def _noting(board: Any) -> Callable[[str, list[Row], list[str]], None]:
    """Return a worker's `note`; it raises FaultError if the training must end."""
    import ray

    def note(line: str, rows: list[Row], pictures: list[str]) -> None:
        fault = ray.get(board.note.remote(line, rows, pictures))
        if fault:
            raise FaultError(fault[1])

    return note


def _work(config: dict[str, Any]) -> None:
    """Run the loop in a worker; put a fault on the board, because a retry would only repeat it."""
    import ray
    from ray import train as ray_train

    board, context = config["board"], ray_train.get_context()
    if ray.get(board.begin.remote(context.get_world_rank())):
        return
    if os.path.isdir(config["folder"]):  # the recipe's relative paths start at the driver's folder
        os.chdir(config["folder"])
    recipe: Any = parse(config["recipe"])
    device = CPU
    if recipe.engine.num_gpus:
        from ray.train.torch import get_device

        device = get_device()
    world = context.get_world_size()
    worker = Worker(context.get_world_rank(), world, device, _noting(board))
    try:
        result = config["loop"](recipe, config["store"], worker)
    except (InputError, FaultError) as error:
        kind = "input" if isinstance(error, InputError) else "run"
        ray.get(board.fail.remote(kind, str(error)))
        if worker.world > 1:  # the other workers wait for this one; Ray ends them
            raise
    else:
        if worker.rank == 0:
            ray.get(board.finish.remote(result))
