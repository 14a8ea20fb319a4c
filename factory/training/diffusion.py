"""Training of autoencoders and denoisers: one loop for both engines and any number of workers.

The same command resumes. Every batch, noise and mask is keyed by its step, so that an interruption
does not change the result.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factory.cluster import hardware
from factory.datasets.feed import counted
from factory.datasets.store import Store
from factory.diffusion.reconstruction import AutoencoderTraining
from factory.diffusion.trainable import Place, Trainable
from factory.recipe import TrainRecipe, canonical
from factory.seeding import seed64
from factory.systems import training_class
from factory.tracking import Run
from factory.training import checkpoint
from factory.training.average import Average
from factory.training.checkpoint import STATE
from factory.training.engines import TrainingEngine, check_engine, make_engine, micro_batches
from factory.training.faults import explained
from factory.training.output import RECORD, check_data_read, data_read, licence
from factory.training.progress import Curve
from factory.training.schedules import learning_rate
from factory.training.workers import Worker, launch

SAMPLES = "samples"
SAMPLES_EVERY = 1000


def trainable_class(system: str) -> type[Trainable]:
    """Return the class that trains `autoencoder` or a system's denoiser; InputError if unknown."""
    return AutoencoderTraining if system == "autoencoder" else training_class(system)


def train(
    recipe: TrainRecipe,
    out: str,
    tracked: Run,
    max_steps: int | None = None,
    check_lock: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run the training on the connected Ray cluster and return its summary.

    Args:
        recipe: a train recipe.
        out: folder or URL of the checkpoints, samples and the finished weights.
        tracked: the run that gets rows of the curve and pictures of samples.
        max_steps: stop after this step of the schedule; the result is saved as unfinished.
        check_lock: as in `launch`.

    Raises:
        FaultError: the training failed, with the worker's reason.
        InputError: a worker found a mistake of the user's.
    """
    store = Store(out)

    def show(name: str) -> None:
        with store.local(name) as path:
            tracked.artifact(path, SAMPLES)

    def log(row: dict[str, float]) -> None:
        tracked.metrics(row, int(row["step"]))

    return launch(partial(run, max_steps=max_steps), recipe, out, log, show, check_lock)


def run(
    recipe: TrainRecipe,
    store: Store,
    worker: Worker = Worker(),  # noqa: B008 - frozen
    max_steps: int | None = None,
) -> dict[str, Any]:
    """Train in this process, as one of several workers.

    Args:
        recipe: a train recipe.
        store: the output for checkpoints, samples and the finished weights.
        worker: this worker.
        max_steps: stop after this step of the schedule.

    Returns:
        The summary in `training.json` on rank 0; an empty dictionary on other ranks.

    Raises:
        InputError: the recipe does not fit its data or weights, or its data has changed since the
            checkpoint.
        FaultError: a loss or gradient is not finite, or memory is too small.
    """
    check_engine(recipe)
    inherited = licence(recipe)
    gpu = worker.device.type == "cuda"
    hardware.set_up(recipe.engine.threads, gpu, recipe.engine.precision)
    torch.manual_seed(seed64(recipe.seed, "weights") % 2**63)
    with _cache(store) as cache:
        place = Place(worker.rank, worker.world, cache, _saying(recipe, worker))
        trainable = trainable_class(recipe.system)(recipe, place).load()
        data = recipe.data
        read = data_read(recipe, *counted(data.urls(), data.identities, data.images_each))
        step = checkpoint.agreed(store) or 0
        held = checkpoint.load(store, step)[STATE] if step else None
        engine = make_engine(recipe, trainable.module, worker.device, held)
        average = Average(engine.held(), recipe.ema)
        total, per_epoch = trainable.total_steps, trainable.steps_per_epoch
        progress = Curve(recipe.name, total, recipe.schedule.batch_size, per_epoch, worker)
        if held is not None:
            check_data_read(store, held.get("data", {}), read)
            average.state = engine.part(held["average"])
            progress.restore(held["progress"])
        stop = max(min(total, max_steps or total), step)
        accumulated = recipe.engine.deepspeed.accumulation_steps
        for batch in progress.waiting(trainable.batches(step, stop)):
            rate = learning_rate(recipe.optimizer.lr, recipe.schedule, step, total, per_epoch)
            torch.manual_seed(seed64(recipe.seed, "step", worker.rank, step) % 2**63)
            found: list[dict[str, float]] = []
            with explained(recipe, step, batch):
                made = engine.step(
                    micro_batches(batch, accumulated), _loss(trainable, engine, found), rate
                )
            average.update(engine.held(), step)
            step += 1
            numbers = {name: sum(f[name] for f in found) / len(found) for name in found[0]}
            numbers |= {"loss": made.loss, "gradient_norm": made.norm}
            progress.add(step, numbers, rate)
            if step % recipe.checkpoint.every_steps == 0 or step == stop:
                _save(recipe, store, step, engine, average, progress, read, worker)
            if step % SAMPLES_EVERY == 0 or step == stop:
                whole = engine.whole(average.state)
                if worker.rank == 0:
                    progress.pictures.append(_picture(store, trainable, engine, whole, step))
        progress.tell(step)
        whole = engine.whole(average.state)
        if worker.rank > 0:
            return {}
        return _finish(recipe, store, trainable, engine, whole, progress, step, inherited, read)


def _saying(recipe: TrainRecipe, worker: Worker) -> Callable[[str], None]:
    """Return what sends a line of rank 0 to the driver, so that no long work is silent."""

    def say(line: str) -> None:
        if worker.rank == 0:
            worker.note(f"{recipe.name}: {line}", [], [])

    return say


@contextmanager
def _cache(store: Store) -> Iterator[Path]:
    """Lend the cache of examples: a folder beside the output, where other trainings find it too."""
    if store.root is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    cache = store.root.parent / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    yield cache


def _loss(
    trainable: Trainable, engine: TrainingEngine, found: list[dict[str, float]]
) -> Callable[[Any], Tensor]:
    """Return the loss of a micro-batch as a function that adds numbers to log to `found`."""

    def loss(part: Any) -> Tensor:
        made, numbers = trainable.loss(engine.module, part)
        found.append(numbers)
        return made

    return loss


def _save(
    recipe: TrainRecipe,
    store: Store,
    step: int,
    engine: TrainingEngine,
    average: Average,
    progress: Curve,
    read: dict[str, Any],
    worker: Worker,
) -> None:
    state = engine.state() | {"average": engine.whole(average.state), "progress": progress.state()}
    state["data"] = read
    parts = {STATE: state} if worker.rank == 0 else {}
    checkpoint.save(store, step, parts, recipe.checkpoint.keep)


def _picture(
    store: Store, trainable: Trainable, engine: TrainingEngine, whole: dict[str, Tensor], step: int
) -> str:
    """Write samples/NNNNNNNNN.png with images of the averaged network; return its name."""
    from PIL import Image

    with engine.lend(whole) as module:
        images = trainable.samples(module)
    rows, columns, size = images.shape[0], images.shape[1], images.shape[2]
    sheet = np.ascontiguousarray(images.swapaxes(1, 2)).reshape(rows * size, columns * size, 3)
    name = f"{SAMPLES}/{step:09d}.png"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "samples.png"
        Image.fromarray(sheet).save(path)
        store.put(path, name)
    return name


def _finish(
    recipe: TrainRecipe,
    store: Store,
    trainable: Trainable,
    engine: TrainingEngine,
    whole: dict[str, Tensor],
    progress: Curve,
    step: int,
    inherited: str,
    read: dict[str, Any],
) -> dict[str, Any]:
    """Write the averaged weights with their facts, and the summary; return the summary."""
    facts = {
        "licence": inherited,
        "recipe": canonical(recipe),
        "steps": f"{step}/{trainable.total_steps}",
        "random_init": ",".join(trainable.random_init),
    }
    summary = {
        "name": recipe.name,
        "licence": inherited,
        **read,
        "steps": step,
        "total": trainable.total_steps,
        "seconds": round(progress.state()["seconds"], 3),
        "parameters": sum(value.numel() for value in _parameters(trainable, whole)),
        "file": trainable.file_name,
        "curve": progress.curve,
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / trainable.file_name
        with engine.lend(whole) as module:
            trainable.save(module, path, facts)
        summary["bytes"] = os.path.getsize(path)
        store.put(path, trainable.file_name)
    store.write(RECORD, json.dumps(summary, indent=1, sort_keys=True).encode())
    return summary


def _parameters(trainable: Trainable, whole: dict[str, Tensor]) -> list[Tensor]:
    return [whole[name] for name, _ in trainable.module.named_parameters()]
