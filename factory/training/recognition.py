"""Training of face recognizers: a Ray Train job over tar shards.

`train` runs in the driver; `_work` runs in each Ray Train worker and owns the loop. All state lies
in the output store's checkpoints, so that a lost worker and a lost driver are the same case:
whoever comes next continues from the newest checkpoint, with the next image of the same order.
"""

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factory.cli import FaultError
from factory.recipe import FRRecipe, InputError, parse
from factory.recognition.backbones import channels_last, make_backbone
from factory.recognition.margins import MarginHead
from factory.recognition.recognizers import FILE, save_recognizer, to_input
from factory.seeding import seed64
from factory.shards.composition import is_composition
from factory.shards.feed import Batch, Feed
from factory.shards.manifest import committed
from factory.shards.store import Store
from factory.training import checkpoint
from factory.training.augment import augment, check_names
from factory.training.schedules import learning_rate, total_steps
from factory.training.steppers import DeepSpeedStepper, Stepper, TorchStepper

CLAIM = "recipe.json"
RECORD = "training.json"
ARCFACE_TORCH = "model.pt"
FAULT = "fault.json"
SCRATCH = "ray"
# What only decides where and how safely it runs; a resumed training may differ in it.
FREE = ("engine.num_cpus", "engine.num_gpus", "engine.max_failures", "checkpoint.", "benchmarks")
POLL_SEC = 1.0
RECORD_SEC = 2.0
ROWS = 200  # rows of the loss curve, about

Report = Callable[[dict[str, float]], None]


def train(recipe: FRRecipe, out: str, report: Report) -> dict[str, Any]:
    """Train a recognizer on the connected Ray cluster, or continue one.

    Args:
        recipe: what to train.
        out: folder or URL of the output, reachable by all workers. Afterwards it holds
            `recipe.json`, `checkpoints/`, `recognizer.safetensors`, `model.pt` (a state dict under
            arcface_torch's names) and `training.json` (curve, seconds, images/s).
        report: called in the driver with each row of the curve: step, epoch, loss, lr,
            images_per_second, seconds, eta_seconds.

    Returns:
        The content of `training.json`.

    Raises:
        InputError: the recipe or its data cannot be trained on, or `out` is another recipe's.
        FaultError: the loss is not finite (names step and keys), or workers failed too often.
    """
    check(recipe)
    check_inputs(recipe)
    store = Store(out)
    claim(store, recipe)
    done = finished(store)
    if done is not None:
        return done
    from factory import engine

    wanted = recipe.engine
    engine.require([("engine.", wanted.workers, wanted.num_cpus, wanted.num_gpus)])
    store.delete(FAULT)
    with _followed(store, report):
        failure = _fit(recipe, out)
    for name in list(store.list(SCRATCH)):
        store.delete(name)
    if store.root is not None:
        shutil.rmtree(store.root / SCRATCH, ignore_errors=True)
    if store.exists(FAULT):
        fault = json.loads(store.read(FAULT))
        store.delete(FAULT)
        raise {"InputError": InputError, "FaultError": FaultError}[fault["kind"]](fault["message"])
    if failure:
        raise FaultError(f"training failed: {failure}")
    done = finished(store)
    assert done is not None
    return done


def check(recipe: FRRecipe) -> None:
    """Raise InputError when the recipe asks for what a recognizer's training does not offer."""
    check_names(recipe.augment)
    engine, each = recipe.engine, recipe.schedule.batch_size
    parts = engine.workers
    if engine.name == "deepspeed":
        parts *= engine.deepspeed.accumulation_steps
        if engine.deepspeed.zero_stage == 3:
            raise InputError(
                "recipe field engine.deepspeed.zero_stage: 3; a recognizer accepts 0, 1 and 2"
            )
        if engine.deepspeed.activation_checkpointing:
            raise InputError(
                "recipe field engine.deepspeed.activation_checkpointing: true; a recognizer "
                "accepts false, since recomputing would count a batch twice in its batch norms"
            )
    if each % parts or each // parts < 2:
        raise InputError(
            f"recipe field schedule.batch_size: {each}; accepted are multiples of {parts} (workers "
            "x accumulation steps), with two images each or more"
        )
    with torch.device("meta"):
        make_backbone(recipe.backbone, recipe.image.size)


def check_inputs(recipe: FRRecipe) -> None:
    """Raise InputError when a dataset or the benchmarks are not there; reads no image."""
    for url in recipe.data.urls():
        if not is_composition(Store(url)) and not committed(Store(url)):
            raise InputError(
                f"recipe field data.train: {Store(url).url} holds no committed shards; accepted is "
                "the folder or URL of a dataset or composition"
            )
    if recipe.benchmarks and not any(Path(recipe.benchmarks).glob("*.bin")):
        raise InputError(
            f"recipe field benchmarks: {recipe.benchmarks}; accepted is a folder of .bin files"
        )


def claim(store: Store, recipe: FRRecipe) -> None:
    """State whose output it is; InputError when it is another recipe's, naming the fields."""
    asked = recipe.model_dump(mode="json")
    if not store.exists(CLAIM):
        store.write(CLAIM, json.dumps(asked, indent=1, sort_keys=True).encode())
        return
    held, wanted = _leaves(json.loads(store.read(CLAIM))), _leaves(asked)
    differing = [
        f"{name} is {held.get(name)!r} there, {wanted.get(name)!r} here"
        for name in sorted(held.keys() | wanted.keys())
        if held.get(name) != wanted.get(name) and not name.startswith(FREE)
    ]
    if differing:
        raise InputError(f"--out {store.url}: holds another recipe's run: {', '.join(differing)}")


def _leaves(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{path}.{name}" if path else name)
    return found


def finished(store: Store) -> dict[str, Any] | None:
    """Return the record of a finished training, or None while it is not finished."""
    if not store.exists(RECORD) or not store.exists(FILE):
        return None
    record = json.loads(store.read(RECORD))
    return record if record["finished"] else None


def _fit(recipe: FRRecipe, out: str) -> str:
    """Run the workers; return why they failed, or an empty string."""
    from ray import train as ray_train
    from ray.train.torch import TorchConfig, TorchTrainer

    from factory import engine

    wanted = recipe.engine
    env = engine.runtime_env(wanted.threads)
    if not wanted.num_gpus:
        env["env_vars"]["DS_ACCELERATOR"] = "cpu"
    root = Store(out).root
    resources = {"CPU": wanted.num_cpus} | ({"GPU": wanted.num_gpus} if wanted.num_gpus else {})
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "store": Store(out),
            "folder": os.getcwd(),
        },
        torch_config=TorchConfig(backend="nccl" if wanted.num_gpus else "gloo"),
        scaling_config=ray_train.ScalingConfig(
            num_workers=wanted.workers,
            use_gpu=wanted.num_gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=ray_train.RunConfig(
            name=f"run-{time.time_ns()}",
            storage_path=f"{out.rstrip('/')}/{SCRATCH}" if root is None else _absolute(root),
            failure_config=ray_train.FailureConfig(max_failures=wanted.max_failures),
            worker_runtime_env=env,
        ),
    )
    try:
        trainer.fit()
    except ray_train.TrainingFailedError as error:
        return " ".join(str(error).split())[-600:]
    return ""


def _absolute(root: Path) -> str:
    return str(root.absolute() / SCRATCH)


@contextmanager
def _followed(store: Store, report: Report) -> Iterator[None]:
    """Report new rows of the record while the block runs, and the last ones at its end."""
    ended = threading.Event()
    seen = 0

    def tell() -> None:
        nonlocal seen
        if not store.exists(RECORD):
            return
        rows = json.loads(store.read(RECORD))["curve"]
        for row in rows:
            if row["step"] > seen:
                seen = row["step"]
                report(row)

    def follow() -> None:
        while not ended.wait(POLL_SEC):
            tell()

    if store.exists(RECORD):
        seen = max((r["step"] for r in json.loads(store.read(RECORD))["curve"]), default=0)
    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        tell()


def _work(config: dict[str, Any]) -> None:
    """One Ray Train worker."""
    from ray import train as ray_train

    recipe, store = parse(config["recipe"]), config["store"]
    assert isinstance(recipe, FRRecipe)
    if os.path.isdir(config["folder"]):  # relative paths of the recipe mean the driver's folder
        os.chdir(config["folder"])
    context = ray_train.get_context()
    world = context.get_world_size()
    if store.exists(FAULT):  # another try would only find the same
        return
    device = torch.device("cpu")
    if recipe.engine.num_gpus:
        from ray.train.torch import get_device

        device = get_device()
    try:
        run(recipe, store, context.get_world_rank(), world, device)
    except (InputError, FaultError) as error:
        fault = {"kind": type(error).__name__, "message": str(error)}
        store.write(FAULT, json.dumps(fault).encode())
        if world > 1:  # the other workers wait for this one; Ray ends them
            raise


def run(
    recipe: FRRecipe,
    store: Store,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    stop_after: int | None = None,
) -> None:
    """Train from the newest checkpoint to the end; the loop of one worker.

    Args:
        recipe: what to train.
        store: the output.
        rank: this worker's number.
        world: number of workers; with more than one, torch.distributed is initialised.
        device: where the network runs.
        stop_after: end after so many steps in all without finishing, as if interrupted.
    """
    device = torch.device(device)
    torch.set_num_threads(recipe.engine.threads)
    data = recipe.data
    feed = Feed(
        data.urls(),
        recipe.schedule.batch_size,
        recipe.seed,
        recipe.image.size,
        identities=data.identities,
        images_each=data.images_each,
        shuffle_labels=data.shuffle_labels,
        rank=rank,
        world=world,
    )
    total = total_steps(recipe.schedule, feed.steps_per_epoch)
    torch.manual_seed(seed64(recipe.seed, "weights"))
    model = Trainee(recipe, feed.classes).to(device)
    stepper: Stepper
    if recipe.engine.name == "deepspeed":
        stepper = DeepSpeedStepper(model, recipe.optimizer, recipe.schedule, recipe.engine)
    else:  # DeepSpeed flattens weights and cannot take them in another memory format
        channels_last(model)
        stepper = TorchStepper(model, recipe.optimizer)
    progress = Progress(store, total, recipe.schedule.batch_size, feed.steps_per_epoch, rank)
    step = checkpoint.latest(store) or 0
    if step:
        progress.restore(stepper.restore(store, step))
    model.train()
    end = total if stop_after is None else min(stop_after, total)
    for batch in feed.batches(step, end):
        rows = slice(batch.start, batch.start + len(batch.labels))
        images = to_input(torch.from_numpy(batch.images).to(device))
        images = augment(
            images, recipe.augment, recipe.seed, batch.step, rows, recipe.schedule.batch_size
        )
        if recipe.backbone.dropout:
            torch.manual_seed(seed64(recipe.seed, "dropout", rank, batch.step))
        rate = learning_rate(
            recipe.optimizer.lr, recipe.schedule, batch.step, total, feed.steps_per_epoch
        )
        loss = stepper.step(images, torch.from_numpy(batch.labels).to(device), rate)
        _refuse_nonfinite(loss, batch)
        step = batch.step + 1
        progress.add(step, loss, rate)
        if step % recipe.checkpoint.every_steps == 0 and step < total:
            stepper.save(store, step, progress.state(), recipe.checkpoint.keep, rank)
    feed.close()
    if step == total:
        stepper.save(store, step, progress.state(), recipe.checkpoint.keep, rank)
        if rank == 0:
            _publish(recipe, store, model)
            progress.finish(feed, recipe)


def _refuse_nonfinite(loss: float, batch: Batch) -> None:
    if loss - loss != 0.0:  # only infinities and NaN differ from themselves
        keys = ", ".join(batch.keys[:8]) + (", ..." if len(batch.keys) > 8 else "")
        raise FaultError(
            f"step {batch.step}: the loss is {loss}; lower optimizer.lr or set "
            f"optimizer.clip_norm. Keys of the batch: {keys}"
        )


class Trainee(nn.Module):
    """Backbone, margin head and loss as one module: images and labels in, mean loss out."""

    def __init__(self, recipe: FRRecipe, classes: int) -> None:
        """Make freshly initialised parts for so many classes."""
        super().__init__()
        self.backbone = make_backbone(recipe.backbone, recipe.image.size)
        self.head = MarginHead(recipe.head, classes, recipe.backbone.embedding_size)
        self.in_bfloat16 = recipe.engine.precision == "bfloat16"

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy, a float32 scalar.

        Args:
            images: float32 [B, 3, S, S] in [-1, 1].
            labels: int64 [B].
        """
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            embeddings = self.backbone(images)
        return nn.functional.cross_entropy(self.head(embeddings, labels), labels)


def _publish(recipe: FRRecipe, store: Store, model: Trainee) -> None:
    weights = {name: value.detach().cpu() for name, value in model.backbone.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        own, theirs = Path(folder) / FILE, Path(folder) / ARCFACE_TORCH
        save_recognizer(
            own, weights, recipe.backbone, recipe.image.size, recipe.name, recipe.licence
        )
        torch.save({name: value.contiguous() for name, value in weights.items()}, theirs)
        store.put(theirs, ARCFACE_TORCH)
        store.put(own, FILE)


class Progress:
    """The curve of a training and its clock, written by rank 0 for the driver to read."""

    def __init__(
        self, store: Store, total: int, batch_size: int, steps_per_epoch: int, rank: int
    ) -> None:
        """Start at step 0."""
        self.store, self.total, self.batch_size = store, total, batch_size
        self.steps_per_epoch, self.rank = steps_per_epoch, rank
        self.every = max(total // ROWS, 1)
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0
        self.sum, self.count = 0.0, 0
        self.last = self.written = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "curve": list(self.curve),
            "seconds": self.seconds + time.monotonic() - self.last,
            "sum": self.sum,
            "count": self.count,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's."""
        self.curve, self.seconds = state["curve"], state["seconds"]
        self.sum, self.count = state["sum"], state["count"]
        self.last = time.monotonic()

    def add(self, step: int, loss: float, rate: float) -> None:
        """Count a step; `step` is how many are done."""
        self.sum, self.count = self.sum + loss, self.count + 1
        if step % self.every and step != self.total:
            return
        now = time.monotonic()
        spent = max(now - self.last, 1e-9)
        self.seconds, self.last = self.seconds + spent, now
        speed = self.count * self.batch_size / spent
        self.curve.append(
            {
                "step": step,
                "epoch": round(step / self.steps_per_epoch, 3),
                "loss": self.sum / self.count,
                "lr": rate,
                "images_per_second": round(speed, 1),
                "seconds": round(self.seconds, 2),
                "eta_seconds": round((self.total - step) * self.batch_size / speed, 1),
            }
        )
        self.sum, self.count = 0.0, 0
        if self.rank == 0 and now - self.written > RECORD_SEC:
            self._write({"finished": False})
            self.written = now

    def finish(self, feed: Feed, recipe: FRRecipe) -> None:
        """Write the record of the finished training."""
        self._write(
            {
                "finished": True,
                "name": recipe.name,
                "steps": self.total,
                "epochs": self.curve[-1]["epoch"],
                "images": len(feed),
                "identities": feed.classes,
                "loss": self.curve[-1]["loss"],
                "seconds": round(self.seconds, 2),
                "images_per_second": round(self.total * self.batch_size / self.seconds, 1),
            }
        )

    def _write(self, fields: dict[str, Any]) -> None:
        record = {**fields, "curve": self.curve}
        self.store.write(RECORD, json.dumps(record, indent=1).encode())
