"""Optimizer steps behind one interface: plain torch on one worker, DeepSpeed on many.

A stepper takes one global step and writes and reads complete checkpoints. The module it is given
maps a micro-batch to a scalar loss, so that it serves any training.
"""

import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from factory.recipe import Engine, Optimizer, Schedule
from factory.shards.store import Store
from factory.training import checkpoint


class Stepper(Protocol):
    """One optimizer step at a time, and all its state in checkpoints."""

    def step(self, images: Tensor, labels: Tensor, rate: float) -> float:
        """Take one step at a learning rate; return the mean loss over all workers."""
        ...

    def save(self, store: Store, step: int, state: dict[str, Any], keep: int, rank: int) -> None:
        """Save a checkpoint with `state` beside the weights; every worker calls it."""
        ...

    def restore(self, store: Store, step: int) -> dict[str, Any]:
        """Load a checkpoint; return its `state`; every worker calls it."""
        ...


def make_optimizer(optimizer: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Return the torch optimizer a recipe names, over the parameters that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optimizer.name == "sgd":
        return torch.optim.SGD(
            parameters, optimizer.lr, optimizer.momentum, weight_decay=optimizer.weight_decay
        )
    kind = torch.optim.Adam if optimizer.name == "adam" else torch.optim.AdamW
    return kind(parameters, optimizer.lr, optimizer.betas, weight_decay=optimizer.weight_decay)


class TorchStepper:
    """Plain torch in one process."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Make the optimizer of a module that maps (images, labels) to a scalar loss."""
        self.model = model
        self.clip_norm = optimizer.clip_norm
        self.optimizer = make_optimizer(optimizer, model)

    def step(self, images: Tensor, labels: Tensor, rate: float) -> float:
        """Take one step; weights stay as they were when the loss is not finite."""
        loss = self.model(images, labels)
        value = loss.item()
        if value - value != 0.0:
            return value
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return value

    def save(self, store: Store, step: int, state: dict[str, Any], keep: int, rank: int) -> None:
        """Save weights, optimizer and `state`."""
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        checkpoint.save(store, step, {**parts, "state": state}, keep)

    def restore(self, store: Store, step: int) -> dict[str, Any]:
        """Load weights and optimizer; return `state`."""
        held = checkpoint.load(store, step)
        self.model.load_state_dict(held["model"])
        self.optimizer.load_state_dict(held["optimizer"])
        return held["state"]


class DeepSpeedStepper:
    """DeepSpeed with ZeRO over the workers of an initialised torch.distributed.

    The module computes in its own autocast and keeps float32 weights, so that precision means the
    same as with plain torch. DeepSpeed reads its own files with pickle; they are the ones this
    training wrote, and their sha256 is checked before.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, schedule: Schedule, engine: Engine
    ) -> None:
        """Wrap a module that maps (images, labels) to a scalar loss."""
        import deepspeed

        self.accumulation = engine.deepspeed.accumulation_steps
        micro = schedule.batch_size // engine.workers // self.accumulation
        zero: dict[str, Any] = {"stage": engine.deepspeed.zero_stage}
        if engine.deepspeed.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        config = {
            "train_batch_size": schedule.batch_size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": optimizer.clip_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        made = deepspeed.initialize(
            model=model, optimizer=make_optimizer(optimizer, model), config=config
        )
        self.engine: Any = made[0]

    def step(self, images: Tensor, labels: Tensor, rate: float) -> float:
        """Take one step over all micro-batches and workers."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        sum_ = torch.zeros((), device=images.device)
        for part, marks in zip(
            images.chunk(self.accumulation), labels.chunk(self.accumulation), strict=True
        ):
            loss = self.engine(part, marks)
            self.engine.backward(loss)
            self.engine.step()
            sum_ += loss.detach()
        torch.distributed.all_reduce(sum_)
        return sum_.item() / self.accumulation / torch.distributed.get_world_size()

    def save(self, store: Store, step: int, state: dict[str, Any], keep: int, rank: int) -> None:
        """Save every worker's part; rank 0 commits when all are there."""
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save_checkpoint(folder, tag="state", client_state={"state": state})
            files = checkpoint.upload(store, step, Path(folder))
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, files)
        if rank == 0:
            checkpoint.commit(store, step, {k: v for part in parts for k, v in part.items()})
            checkpoint.prune(store, keep)
        torch.distributed.barrier()

    def restore(self, store: Store, step: int) -> dict[str, Any]:
        """Load every worker's part; return `state`."""
        with checkpoint.fetch(store, step) as folder:
            path, client = self.engine.load_checkpoint(str(folder), tag="state")
        assert path is not None
        return client["state"]
