"""The two engines under a training loop: plain torch on one worker, DeepSpeed on many."""

import tempfile
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from factory.recipe import InputError, Optimizer, TrainRecipe
from factory.shards.store import Store
from factory.training import checkpoint

AVERAGE = "average.pt"


class Averaged(Protocol):
    """A moving average that is saved beside the network."""

    state: dict[str, Tensor]


class Engine(ABC):
    """Runs optimizer steps and saves all it needs to continue.

    Attributes:
        module: the network as the loss must call it.
    """

    module: nn.Module

    @abstractmethod
    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which the loss is computed."""

    @abstractmethod
    def step(self, loss: Tensor, rate: float) -> None:
        """Differentiate the loss and take one optimizer step at a learning rate."""

    @abstractmethod
    def save(self, store: Store, step: int, average: Averaged, keep: int) -> None:
        """Save a checkpoint after `step` steps; every worker calls it."""

    @abstractmethod
    def load(self, store: Store, step: int, average: Averaged) -> None:
        """Continue from a checkpoint; every worker calls it."""


def make_engine(recipe: TrainRecipe, module: nn.Module) -> Engine:
    """Return the engine a recipe names, around a network."""
    device = torch.device("cuda" if recipe.engine.num_gpus else "cpu")
    # Convolutions are fastest with channels last; DeepSpeed sends weights as flat bytes.
    order = torch.channels_last if recipe.engine.name == "torch" else torch.contiguous_format
    cast(Any, module).to(device, memory_format=order).train()  # torch types it for tensors
    engine = TorchEngine if recipe.engine.name == "torch" else DeepSpeedEngine
    return engine(recipe, module, device)


def make_optimizer(recipe: Optimizer, module: nn.Module) -> torch.optim.Optimizer:
    """Return torch's optimizer of a recipe over all parameters that want gradients."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if recipe.name == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    kind = torch.optim.Adam if recipe.name == "adam" else torch.optim.AdamW
    return kind(parameters, recipe.lr, recipe.betas, weight_decay=recipe.weight_decay, fused=True)


class TorchEngine(Engine):
    """One worker, torch's own optimizer, automatic mixed precision."""

    def __init__(self, recipe: TrainRecipe, module: nn.Module, device: torch.device) -> None:
        """Wrap a network that is on its device already."""
        self.module = module
        self.device = device
        self.recipe = recipe
        self.optimizer = make_optimizer(recipe.optimizer, module)

    def precision(self) -> AbstractContextManager[Any]:
        """Return autocast to bfloat16, or nothing for float32."""
        low = self.recipe.engine.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)

    def step(self, loss: Tensor, rate: float) -> None:
        """Take one step, clipping the gradient's norm where the recipe says so."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        if self.recipe.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, store: Store, step: int, average: Averaged, keep: int) -> None:
        """Save network, average and optimizer as one file."""
        state = {
            "module": self.module.state_dict(),
            "average": average.state,
            "optimizer": self.optimizer.state_dict(),
        }
        checkpoint.save(store, step, state, keep)

    def load(self, store: Store, step: int, average: Averaged) -> None:
        """Load what `save` saved."""
        state = checkpoint.load(store, step)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        average.state = {name: value.to(self.device) for name, value in state["average"].items()}


class DeepSpeedEngine(Engine):
    """Many workers, DeepSpeed's sharded optimizer (ZeRO 1 or 2)."""

    def __init__(self, recipe: TrainRecipe, module: nn.Module, device: torch.device) -> None:
        """Wrap a network; its learning rate is set by the loop, not by DeepSpeed."""
        import deepspeed

        settings = recipe.engine.deepspeed
        if settings.zero_stage == 3:
            raise InputError(
                "recipe field engine.deepspeed.zero_stage: 3; a moving average of the weights is "
                "kept here, accepted are 0, 1, 2"
            )
        for field, value, accepted in (
            ("accumulation_steps", settings.accumulation_steps, 1),
            ("activation_checkpointing", settings.activation_checkpointing, False),
        ):
            if value != accepted:
                raise InputError(
                    f"recipe field engine.deepspeed.{field}: {value}; a diffusion training accepts "
                    f"{accepted}"
                )
        self.device = device
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": recipe.schedule.batch_size // recipe.engine.workers,
            "zero_optimization": {"stage": settings.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": recipe.optimizer.clip_norm,
            "steps_per_print": 10**9,
        }
        if recipe.engine.precision == "bfloat16":
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        if settings.offload:
            config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=make_optimizer(recipe.optimizer, module), config=config
        )
        self.engine: Any = engine
        self.module = engine

    def precision(self) -> AbstractContextManager[Any]:
        """Return nothing: DeepSpeed casts by its own configuration."""
        return nullcontext()

    def step(self, loss: Tensor, rate: float) -> None:
        """Take one step; gradients are averaged over the workers."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.backward(loss)
        self.engine.step()

    def save(self, store: Store, step: int, average: Averaged, keep: int) -> None:
        """Save each worker's part; the first worker commits when all are uploaded."""
        from torch import distributed

        with tempfile.TemporaryDirectory() as folder:
            self.engine.save_checkpoint(folder, tag="state")
            if distributed.get_rank() == 0:
                torch.save(average.state, Path(folder) / AVERAGE)
            files = checkpoint.upload(store, step, Path(folder))
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, files)
        if distributed.get_rank() == 0:
            merged: dict[str, str] = {}
            for part in gathered:
                merged |= part
            checkpoint.commit(store, step, merged)
            checkpoint.prune(store, keep)
        distributed.barrier()

    def load(self, store: Store, step: int, average: Averaged) -> None:
        """Load this worker's part of what `save` saved."""
        with checkpoint.fetch(store, step) as folder:
            self.engine.load_checkpoint(str(folder), tag="state")
            held = torch.load(folder / AVERAGE, map_location="cpu", weights_only=True)
        average.state = {name: value.to(self.device) for name, value in held.items()}
