"""Train autoencoders and denoisers on Ray Train: one loop, plain torch or DeepSpeed under it.

The same command resumes. Every batch, noise and mask is keyed by its step, so that a training
interrupted anywhere ends with the same numbers as one that was not.
"""

import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from torch import nn

from factory.cli import FaultError, ProgressLine
from factory.diffusion.reconstruction import AutoencoderTraining
from factory.diffusion.trainable import Place, Trainable
from factory.recipe import InputError, TrainRecipe, canonical, parse
from factory.seeding import seed64
from factory.shards.store import Store
from factory.systems import training_class
from factory.tracking import Run
from factory.training import checkpoint
from factory.training.engines import Engine, make_engine
from factory.training.schedules import learning_rate

Note = Callable[[str, int, dict[str, float]], Any]

RECIPE = "recipe.json"
FREE = ("engine", "checkpoint")  # how the work is done may change between two starts
REPORT_SEC = 2.0
SAMPLES_EVERY = 1000


def trainable_class(system: str) -> type[Trainable]:
    """Return what trains `autoencoder` or a system's denoiser; InputError names the accepted."""
    return AutoencoderTraining if system == "autoencoder" else training_class(system)


def check_output(store: Store, recipe: TrainRecipe) -> None:
    """Refuse an output folder that holds another recipe's training."""
    if not store.exists(RECIPE):
        if next(iter(store.list(checkpoint.FOLDER)), None) is not None:
            raise InputError(f"--out {store.url}: holds checkpoints but no {RECIPE}")
        return
    held = _flat(json.loads(store.read(RECIPE)))
    wanted = _flat(json.loads(canonical(recipe)))
    differing = [
        f"{name} is {held.get(name)!r} there, {wanted.get(name)!r} here"
        for name in sorted({*held, *wanted})
        if name.split(".")[0] not in FREE and held.get(name) != wanted.get(name)
    ]
    if differing:
        raise InputError(
            f"--out {store.url}: holds another recipe's training: {', '.join(differing)}"
        )


def train(recipe: TrainRecipe, out: str, tracked: Run, max_steps: int | None = None) -> dict:
    """Run the training on the connected Ray cluster and return its summary.

    Args:
        recipe: what to train.
        out: folder or URL of the checkpoints, samples and the finished weights.
        tracked: where metrics go.
        max_steps: stop after this step of the schedule, saved and marked as unfinished.

    Raises:
        FaultError: the training failed, with the worker's reason.
        InputError: a worker found a mistake of the user's.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    engine = recipe.engine
    resources = {"CPU": engine.num_cpus}
    if engine.num_gpus:
        resources["GPU"] = engine.num_gpus
    environment = {"OMP_NUM_THREADS": str(engine.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if engine.name == "deepspeed" and not engine.num_gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "recipe": recipe.model_dump(mode="json"),
                "out": out,
                "max_steps": max_steps,
                "board": board,
                "folder": os.getcwd(),
            },
            torch_config=TorchConfig(backend="nccl" if engine.num_gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=engine.workers,
                use_gpu=bool(engine.num_gpus),
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=recipe.name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=engine.max_failures),
                worker_runtime_env={"env_vars": environment},
            ),
        )
        with _relayed(board, tracked):
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                fault = ray.get(board.fault.remote())
                if fault:
                    raise (InputError if fault[0] == "input" else FaultError)(fault[1]) from None
                reason = str(error).strip().splitlines()
                raise FaultError(f"training failed: {reason[-1] if reason else error}") from error
    fault = ray.get(board.fault.remote())
    if fault:
        raise (InputError if fault[0] == "input" else FaultError)(fault[1])
    return ray.get(board.summary.remote())


class Board:
    """Carries lines and numbers from the first worker to the driver."""

    def __init__(self) -> None:
        """Start empty."""
        self.line = ""
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.result: dict[str, Any] = {}
        self.error: tuple[str, str] | None = None

    def note(self, line: str, step: int, numbers: dict[str, float]) -> None:
        """Take the newest line and the numbers of a step."""
        self.line = line
        self.rows.append((step, numbers))

    def finish(self, result: dict[str, Any]) -> None:
        """Take the summary of a finished training."""
        self.result = result

    def fail(self, kind: str, message: str) -> None:
        """Take a fault that no retry will mend."""
        self.error = (kind, message)

    def take(self) -> tuple[str, list[tuple[int, dict[str, float]]]]:
        """Hand over the line and the numbers since the last call."""
        rows, self.rows = self.rows, []
        return self.line, rows

    def summary(self) -> dict[str, Any]:
        """Return the summary."""
        return self.result

    def fault(self) -> tuple[str, str] | None:
        """Return (kind, message) of a fault, kind being `input` or `run`."""
        return self.error


@contextmanager
def _relayed(board: Any, tracked: Run) -> Iterator[None]:
    """Show the board's line and log its numbers while the trainer blocks the main thread."""
    ended = threading.Event()
    show = ProgressLine()

    def relay() -> None:
        line, rows = ray.get(board.take.remote())
        for step, numbers in rows:
            tracked.metrics(numbers, step)
        if rows:
            show(line)

    def follow() -> None:
        while not ended.wait(REPORT_SEC):
            relay()

    thread = threading.Thread(target=follow, name="relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        relay()


def _work(config: dict[str, Any]) -> None:
    """Run in each worker; a mistake of the user's is handed over instead of being retried."""
    board = config["board"]
    # Relative paths mean the driver's folder, where the worker can see it.
    if os.path.isdir(config["folder"]):
        os.chdir(config["folder"])
    context = ray.train.get_context()
    recipe = parse(config["recipe"])
    assert isinstance(recipe, TrainRecipe)
    try:
        summary = run(
            recipe,
            Store(config["out"]),
            config["max_steps"],
            context.get_world_rank(),
            context.get_world_size(),
            lambda line, step, numbers: ray.get(board.note.remote(line, step, numbers)),
        )
    except InputError as error:
        ray.get(board.fail.remote("input", str(error)))
    except FaultError as error:
        ray.get(board.fail.remote("run", str(error)))
    else:
        if summary:
            ray.get(board.finish.remote(summary))


def run(
    recipe: TrainRecipe,
    store: Store,
    max_steps: int | None = None,
    rank: int = 0,
    world: int = 1,
    note: Note = lambda line, step, numbers: None,
) -> dict[str, Any]:
    """Train in this process, as one of `world` workers; Ray Train calls this in each.

    Args:
        recipe: what to train.
        store: where checkpoints, samples and the finished weights go.
        max_steps: stop after this step of the schedule.
        rank: this worker's number; the first one writes.
        world: number of workers.
        note: called by the first worker now and then with a line, a step and its numbers.

    Returns:
        The summary kept in `training.json`, from the first worker; others return nothing in it.

    Raises:
        InputError: the recipe does not fit its data or weights.
        FaultError: the loss is not finite.
    """
    torch.set_num_threads(recipe.engine.threads)
    torch.manual_seed(seed64(recipe.seed, "weights") % 2**63)
    with tempfile.TemporaryDirectory() as scratch:
        # Beside the output, where a second stage finds what the first one computed.
        cache = store.root.parent / "cache" if store.root is not None else Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        trainable = trainable_class(recipe.system)(recipe, Place(rank, world, cache))
        total = trainable.total_steps
        stop = min(total, max_steps or total)
        engine = make_engine(recipe, trainable.module)
        average = Average(trainable.module, recipe.ema)
        start = _resume(store, engine, average)
        clock = Clock(start)
        for step, batch in enumerate(trainable.batches(start, stop), start=start):
            rate = learning_rate(
                recipe.optimizer.lr, recipe.schedule, step, total, trainable.steps_per_epoch
            )
            with engine.precision():
                loss, numbers = trainable.loss(engine.module, batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FaultError(f"step {step}: the loss is {value}; the last checkpoint is sound")
            engine.step(loss, rate)
            average.update(trainable.module, step)
            done = step + 1
            clock.count(numbers | {"loss": value})
            if rank == 0 and (clock.due() or done == stop):
                numbers = clock.take(done)
                speed = numbers["steps_per_second"] * recipe.schedule.batch_size
                line = (
                    f"{recipe.name}: step {done}/{total}, loss {numbers['loss']:.4f}, "
                    f"{speed:.0f} images/s, {clock.remaining(done, stop)} left"
                )
                note(line, done, numbers | {"images_per_second": speed, "lr": rate})
            if done % recipe.checkpoint.every_steps == 0 or done == stop:
                engine.save(store, done, average, recipe.checkpoint.keep)
            if rank == 0 and (done % SAMPLES_EVERY == 0 or done == stop):
                _picture(store, trainable, average, done)
        if rank > 0:
            return {}
        return _finish(store, recipe, trainable, average, max(start, stop), total, clock)


class Average:
    """Exponential moving average of a network, by the power schedule min(max, 1 - (1+s)^-0.75)."""

    def __init__(self, module: nn.Module, highest: float) -> None:
        """Start from the network's present state; `highest` 0 keeps no average."""
        self.highest = highest
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the network after the optimizer step `step` (from 0)."""
        decay = min(self.highest, 1.0 - (1.0 + step) ** -0.75)
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value.to(self.state[name].dtype), 1.0 - decay)
            else:
                self.state[name].copy_(value)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[nn.Module]:
        """Lend the network with the averaged state, in evaluation mode; restore it after."""
        held = {name: value.detach().clone() for name, value in module.state_dict().items()}
        training = module.training
        module.load_state_dict(self.state)
        try:
            yield module.eval()
        finally:
            module.load_state_dict(held)
            module.train(training)


class Clock:
    """Averages numbers between two reports and estimates the time left."""

    def __init__(self, start: int) -> None:
        """Start at a step."""
        self.began, self.start = time.monotonic(), start
        self.at, self.step = self.began, start
        self.sums: dict[str, float] = {}
        self.counted = 0

    def count(self, numbers: dict[str, float]) -> None:
        """Add the numbers of one step."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.counted += 1

    def due(self) -> bool:
        """Return whether it is time to report."""
        return time.monotonic() - self.at >= REPORT_SEC

    def take(self, done: int) -> dict[str, float]:
        """Return the means since the last report."""
        now = time.monotonic()
        means = {name: value / self.counted for name, value in self.sums.items()}
        means["steps_per_second"] = (done - self.step) / max(now - self.at, 1e-9)
        self.at, self.step, self.sums, self.counted = now, done, {}, 0
        return means

    def remaining(self, done: int, stop: int) -> str:
        """Return the time left as h:mm:ss."""
        seconds = (time.monotonic() - self.began) / max(done - self.start, 1) * (stop - done)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _resume(store: Store, engine: Engine, average: Average) -> int:
    step = checkpoint.latest(store)
    if step is None:
        return 0
    engine.load(store, step, average)
    return step


def _picture(store: Store, trainable: Trainable, average: Average, step: int) -> None:
    """Write samples/NNNNNNNNN.png, rows and columns of the averaged network's images."""
    from PIL import Image

    with average.applied(trainable.module) as module:
        images = trainable.samples(module)
    rows, columns, size = images.shape[0], images.shape[1], images.shape[2]
    sheet = np.ascontiguousarray(images.swapaxes(1, 2)).reshape(rows * size, columns * size, 3)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "samples.png"
        Image.fromarray(sheet).save(path)
        store.put(path, f"samples/{step:09d}.png")


def _finish(
    store: Store,
    recipe: TrainRecipe,
    trainable: Trainable,
    average: Average,
    step: int,
    total: int,
    clock: Clock,
) -> dict[str, Any]:
    """Write the averaged weights, with what a later reader must know of them."""
    facts = {
        "licence": recipe.licence,
        "recipe": canonical(recipe),
        "steps": f"{step}/{total}",
        "random_init": ",".join(trainable.random_init),
    }
    summary = {
        "name": recipe.name,
        "steps": step,
        "total": total,
        "seconds": round(time.monotonic() - clock.began, 3),
        "parameters": sum(p.numel() for p in trainable.module.parameters()),
        "file": trainable.file_name,
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / trainable.file_name
        with average.applied(trainable.module) as module:
            trainable.save(module, path, facts)
        summary["bytes"] = os.path.getsize(path)
        store.put(path, trainable.file_name)
    store.write("training.json", json.dumps(summary, indent=1, sort_keys=True).encode())
    return summary


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
