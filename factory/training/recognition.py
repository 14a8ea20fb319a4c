"""Training of face recognizers: the engine trains the backbone, `Centres` the class centres.

The same command resumes with the next image of the same order; see `factory.datasets.feed`.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from factory.cluster import hardware
from factory.datasets.feed import Batch, Feed
from factory.datasets.store import Store
from factory.recipe import FRRecipe, InputError
from factory.recognition.backbones import make_backbone
from factory.recognition.onnx_export import save_onnx
from factory.recognition.recognizer import to_input
from factory.recognition.recognizers import FILE, load_recognizer, save_recognizer
from factory.seeding import seed64
from factory.training import checkpoint
from factory.training.augment import augment, check_names
from factory.training.centres import Centres
from factory.training.checkpoint import STATE
from factory.training.engines import check_engine, make_engine, micro_batches
from factory.training.faults import explained
from factory.training.output import (
    RECORD,
    check_data,
    check_data_read,
    claim,
    data_read,
    licence,
)
from factory.training.progress import Curve
from factory.training.schedules import learning_rate, total_steps
from factory.training.workers import Worker, launch

ARCFACE_TORCH = "model.pt"
CENTRES = "centres-"

Report = Callable[[dict[str, float]], None]


class Watch(Protocol):
    """Measures a network while it is trained and adds numbers to the curve."""

    def due(self, step: int, total: int) -> bool:
        """Tell whether to measure after this step; a checkpoint is then saved too."""
        ...

    def look(self, recipe: FRRecipe, weights: dict[str, Tensor], last: bool) -> dict[str, float]:
        """Return numbers for the curve; called on rank 0, `last` after the last step."""
        ...


def train(
    recipe: FRRecipe, out: str, report: Report, check_lock: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train a recognizer on the connected Ray cluster, or continue one.

    Args:
        recipe: an fr recipe.
        out: folder or URL of the output, reachable by all workers. Afterwards it holds
            `recipe.json`, `checkpoints/`, `recognizer.safetensors`, `model.pt` (a state dict with
            arcface_torch's names) and `training.json` (curve, seconds, images/s).
        report: is called in the driver with each row of the curve: step, epoch, loss, lr,
            gradient_norm, images_per_second, data_wait, memory_gb, seconds, eta_seconds.
        check_lock: as in `launch`.

    Returns:
        The content of `training.json`.

    Raises:
        InputError: the recipe or its data cannot be trained on, or `out` is another recipe's.
        FaultError: the loss is not finite (the message names step and keys), or workers failed too
            often.
    """
    check(recipe)
    check_inputs(recipe)
    store = Store(out)
    claim(store, recipe)
    done = finished(store)
    if done is not None:
        return done
    from factory.cluster.capacity import require, trainers

    wanted = recipe.engine
    require([trainers(wanted)])
    return launch(run, recipe, out, report, check_lock=check_lock)


def check(recipe: FRRecipe) -> None:
    """Raise InputError if the recipe asks for something that this training cannot do."""
    check_names(recipe.augment)
    check_engine(recipe, least=2)  # batch norms need two images
    with torch.device("meta"):
        make_backbone(recipe.backbone, recipe.image.size)


def check_inputs(recipe: FRRecipe) -> None:
    """Raise InputError if a dataset or the benchmarks are missing; reads no image."""
    check_data(recipe)
    if recipe.benchmarks and not any(Path(recipe.benchmarks).glob("*.bin")):
        raise InputError(
            f"recipe field benchmarks: {recipe.benchmarks}; accepted is a folder of .bin files"
        )


def finished(store: Store) -> dict[str, Any] | None:
    """Return the record of a finished training; None if it is not finished."""
    if not store.exists(RECORD) or not store.exists(FILE):
        return None
    return json.loads(store.read(RECORD))


def export(store: Store, file: str) -> None:
    """Write a finished training's network as ONNX to a local file; do nothing if `file` is ""."""
    if file:
        with store.local(FILE) as path:
            save_onnx(load_recognizer(str(path)), Path(file))


def run(
    recipe: FRRecipe,
    store: Store,
    worker: Worker = Worker(),  # noqa: B008 - frozen
    stop_after: int | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train from the newest checkpoint to the end, as one of several workers.

    Args:
        recipe: an fr recipe.
        store: the output.
        worker: this worker.
        stop_after: end after this many steps in all without finishing, as if interrupted.
        watch: measures the network now and then; it does not change the training.

    Returns:
        The record in `training.json` on rank 0 of a finished training; else an empty dictionary.

    Raises:
        InputError: the recipe does not fit its data, or its data has changed since the checkpoint.
        FaultError: a loss or gradient is not finite, or memory is too small.
    """
    check(recipe)
    inherited = licence(recipe)
    feed = _feed(recipe, worker)
    read = data_read(recipe, len(feed), feed.classes)
    total, per_epoch = total_steps(recipe.schedule, feed.steps_per_epoch), feed.steps_per_epoch
    gpu = worker.device.type == "cuda"
    hardware.set_up(recipe.engine.threads, gpu, recipe.engine.precision)
    torch.manual_seed(seed64(recipe.seed, "weights"))
    backbone = make_backbone(recipe.backbone, recipe.image.size)
    centres = Centres(recipe, feed.classes, worker.device, worker.rank, worker.world)
    progress = Curve(recipe.name, total, recipe.schedule.batch_size, per_epoch, worker)
    step = checkpoint.agreed(store) or 0
    held = checkpoint.load(store, step) if step else None
    if held is not None:
        check_data_read(store, held[STATE].get("data", {}), read)
    engine = make_engine(recipe, backbone, worker.device, held[STATE] if held else None)
    if held is not None:
        centres.restore([part for name, part in held.items() if name.startswith(CENTRES)])
        progress.restore(held[STATE]["progress"])

    def loss(part: tuple[Tensor, Tensor]) -> Tensor:
        return centres.loss(engine.module(part[0]), part[1])

    def save() -> None:
        state = engine.state() | {"progress": progress.state(), "data": read}
        parts = {f"{CENTRES}{worker.rank:05d}.pt": centres.state()}
        if worker.rank == 0:
            parts[STATE] = state
        checkpoint.save(store, step, parts, recipe.checkpoint.keep)

    accumulated = recipe.engine.deepspeed.accumulation_steps
    end = total if stop_after is None else min(stop_after, total)
    for batch in progress.waiting(feed.batches(step, end)):
        rate = learning_rate(recipe.optimizer.lr, recipe.schedule, step, total, per_epoch)
        with explained(recipe, step, batch):
            images, labels = _inputs(recipe, batch, worker)
            torch.manual_seed(seed64(recipe.seed, "dropout", worker.rank, step))
            centres.sample(step, labels)
            made = engine.step(micro_batches((images, labels), accumulated), loss, rate)
            centres.step(rate)
        step += 1
        numbers = {"loss": made.loss, "gradient_norm": made.norm}
        due = watch is not None and watch.due(step, total)
        if watch is not None and due:
            weights = engine.whole(engine.held())
            if worker.rank == 0:
                numbers |= watch.look(recipe, weights, step == total)
        progress.add(step, numbers, rate)
        if due or step % recipe.checkpoint.every_steps == 0 or step == total:
            save()
    feed.close()
    if step < total:
        return {}
    progress.end()
    whole = engine.whole(engine.held())
    if worker.rank > 0:
        return {}
    _publish(recipe, store, whole, inherited)
    return _record(recipe, store, read, progress, inherited)


def _feed(recipe: FRRecipe, worker: Worker) -> Feed:
    data = recipe.data
    return Feed(
        data.urls(),
        recipe.schedule.batch_size,
        recipe.seed,
        recipe.image.size,
        identities=data.identities,
        images_each=data.images_each,
        shuffle_labels=data.shuffle_labels,
        rank=worker.rank,
        world=worker.world,
        resize=data.resize,
    )


def _inputs(recipe: FRRecipe, batch: Batch, worker: Worker) -> tuple[Tensor, Tensor]:
    """Return augmented images float32 [B, 3, S, S] and labels int64 [B] on the device."""
    rows = slice(batch.start, batch.start + len(batch.labels))
    images = to_input(torch.from_numpy(batch.images).to(worker.device))
    size = recipe.schedule.batch_size
    images = augment(images, recipe.augment, recipe.seed, batch.step, rows, size)
    return images, torch.from_numpy(batch.labels).to(worker.device)


def _publish(recipe: FRRecipe, store: Store, whole: dict[str, Tensor], inherited: str) -> None:
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in whole.items()}
    with tempfile.TemporaryDirectory() as folder:
        own, theirs = Path(folder) / FILE, Path(folder) / ARCFACE_TORCH
        save_recognizer(own, weights, recipe.backbone, recipe.image.size, recipe.name, inherited)
        torch.save(weights, theirs)
        store.put(theirs, ARCFACE_TORCH)
        store.put(own, FILE)


def _record(
    recipe: FRRecipe, store: Store, read: dict[str, Any], progress: Curve, inherited: str
) -> dict[str, Any]:
    last = progress.curve[-1]
    record = {
        "name": recipe.name,
        "licence": inherited,
        "steps": progress.total,
        "epochs": last["epoch"],
        **read,
        "loss": last["loss"],
        "seconds": last["seconds"],
        "images_per_second": round(
            progress.total * recipe.schedule.batch_size / max(last["seconds"], 1e-9), 1
        ),
        "curve": progress.curve,
    }
    store.write(RECORD, json.dumps(record, indent=1).encode())
    return record
