"""The two engines of a training loop: plain torch on one worker, DeepSpeed on many.

Both keep float32 weights and use automatic mixed precision if the recipe says bfloat16, so that
precision means the same for both. They save whole states in torch's own format. A training may
therefore continue with the other engine, another ZeRO stage or another number of workers.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn

from factory.recipe import AUTO, Engine, FRRecipe, InputError, Optimizer, TrainRecipe
from factory.training.recompute import recompute_blocks

P = TypeVar("P")
State = dict[str, Any]  # "module": a state dict; "optimizer": torch's state dict of an optimizer


class Step(NamedTuple):
    """The result of an optimizer step.

    Attributes:
        loss: mean loss over micro-batches and workers.
        norm: norm of the gradient over all workers, before clipping.
    """

    loss: float
    norm: float


class NotFiniteError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the step is not saved."""


class TrainingEngine(ABC):
    """Runs optimizer steps, and saves and restores the state that it needs to continue.

    Attributes:
        module: the network, as the loss must call it.
    """

    module: nn.Module

    def __init__(self, recipe: Engine, device: torch.device) -> None:
        """Keep the recipe's engine and the device."""
        assert recipe.precision != AUTO, "what auto means is settled before a training"
        self.recipe = recipe
        self.device = device

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context for computing losses: autocast to bfloat16, or an empty context."""
        low = self.recipe.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext()

    @abstractmethod
    def step(self, parts: Sequence[P], loss: Callable[[P], Tensor], rate: float) -> Step:
        """Take one optimizer step over micro-batches.

        Args:
            parts: this worker's micro-batches of equal size, as many as the recipe accumulates.
            loss: returns the mean loss over a micro-batch, computed with `module`.
            rate: learning rate.

        Raises:
            NotFiniteError: a loss or the gradient is not finite.
        """

    @abstractmethod
    def state(self) -> State:
        """Return the whole weights and optimizer state; every worker must call this."""

    @abstractmethod
    def restore(self, optimizer: dict[str, Any]) -> None:
        """Continue with an optimizer state that `state` returned."""

    @abstractmethod
    def held(self) -> dict[str, Tensor]:
        """Return the weights as this worker holds them: whole, or with ZeRO-3 its part."""

    @abstractmethod
    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole state dict of which `held` is a part; every worker must call this."""

    @abstractmethod
    def part(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this worker's part of a whole state dict, in the layout of `held`."""

    @abstractmethod
    def lend(self, whole: Mapping[str, Tensor]) -> AbstractContextManager[nn.Module]:
        """Lend a network with a whole state dict, in evaluation mode; one worker may call this."""


def check_engine(recipe: TrainRecipe | FRRecipe, least: int = 1) -> None:
    """Refuse a batch that cannot be cut into equal micro-batches.

    Args:
        recipe: the recipe.
        least: least number of images of a micro-batch.

    Raises:
        InputError: the batch size does not fit; the message states what would be accepted.
    """
    engine, size = recipe.engine, recipe.schedule.batch_size
    parts = engine.workers * engine.deepspeed.accumulation_steps
    if size % parts or size // parts < least:
        raise InputError(
            f"recipe field schedule.batch_size: {size}; accepted are multiples of {parts} (workers "
            f"x accumulation steps), with {least} or more images each"
        )


def make_engine(
    recipe: TrainRecipe | FRRecipe,
    module: nn.Module,
    device: torch.device,
    state: State | None = None,
) -> TrainingEngine:
    """Return the engine that a recipe names, around a network.

    Args:
        recipe: names the engine, the optimizer and its constants.
        module: the network, which the engine takes over.
        device: the device of the network.
        state: an engine's `state` to continue from.
    """
    if state is not None:
        module.load_state_dict(state["module"])
    if recipe.engine.deepspeed.activation_checkpointing:
        recompute_blocks(module)
    plain = recipe.engine.name == "torch"
    # Convolutions are fastest with channels last, but DeepSpeed sends weights as flat bytes.
    order = torch.channels_last if plain else torch.contiguous_format
    cast(Any, module).to(device, memory_format=order).train()  # torch types it for tensors
    made = (TorchEngine if plain else DeepSpeedEngine)(recipe, module, device)
    if state is not None:
        made.restore(state["optimizer"])
    return made


def make_optimizer(recipe: Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's optimizer for a recipe and parameters."""
    if recipe.name == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    kind = torch.optim.Adam if recipe.name == "adam" else torch.optim.AdamW
    return kind(parameters, recipe.lr, recipe.betas, weight_decay=recipe.weight_decay, fused=True)


def unmoved(one: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
    """Return an optimizer's state for parameters before their first step.

    Args:
        one: the state of another parameter, for its layout and its count of steps. Fused optimizers
            need that count on the parameters' device, also on a GPU.
        values: the parameters.
    """
    return {
        key: value.to(values.device, copy=True) if key == "step" else torch.zeros_like(values)
        for key, value in one.items()
    }


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in the order in which optimizers number them."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


class TorchEngine(TrainingEngine):
    """The engine of one worker, with torch's own optimizer."""

    def __init__(
        self, recipe: TrainRecipe | FRRecipe, module: nn.Module, device: torch.device
    ) -> None:
        """Wrap a network that is already on its device."""
        super().__init__(recipe.engine, device)
        self.module = module
        self.clip_norm = recipe.optimizer.clip_norm
        self.parameters = list(trained(module).values())
        self.optimizer = make_optimizer(recipe.optimizer, self.parameters)

    def step(self, parts: Sequence[P], loss: Callable[[P], Tensor], rate: float) -> Step:
        """Take one step; the gradient's norm is clipped if the recipe says so."""
        total = 0.0
        for part in parts:
            with self.precision():
                made = loss(part) / len(parts)
            total += _finite(made.item(), "loss")
            made.backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        length = _finite(norm.item(), "gradient's norm")
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(total, length)

    def state(self) -> State:
        """Return weights and optimizer."""
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, optimizer: dict[str, Any]) -> None:
        """Continue with an optimizer's state."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer["state"], "param_groups": groups})

    def held(self) -> dict[str, Tensor]:
        """Return the network's state dict."""
        return self.module.state_dict()

    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `held`."""
        return dict(held)

    def part(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `whole`, on the device."""
        return {name: value.to(self.device) for name, value in whole.items()}

    def lend(self, whole: Mapping[str, Tensor]) -> AbstractContextManager[nn.Module]:
        """Lend the network itself, and restore its own weights afterwards."""
        return _lent(self.module, whole)


class DeepSpeedEngine(TrainingEngine):
    """The engine of many workers: DeepSpeed with ZeRO 0, 1, 2 or 3, on torch.distributed."""

    def __init__(
        self, recipe: TrainRecipe | FRRecipe, module: nn.Module, device: torch.device
    ) -> None:
        """Wrap a network; the loop sets its learning rate, not DeepSpeed."""
        import deepspeed

        super().__init__(recipe.engine, device)
        if device.type == "cpu":
            # At first use DeepSpeed would compile an all-reduce over shared memory, which needs a
            # compiler and takes minutes; gloo works without it.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        settings, workers = recipe.engine.deepspeed, recipe.engine.workers
        self.stage = settings.zero_stage
        zero: dict[str, Any] = {"stage": self.stage}
        if settings.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        config: dict[str, Any] = {
            "train_batch_size": recipe.schedule.batch_size,
            "train_micro_batch_size_per_gpu": recipe.schedule.batch_size
            // workers
            // settings.accumulation_steps,
            "gradient_accumulation_steps": settings.accumulation_steps,
            "gradient_clipping": recipe.optimizer.clip_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        if recipe.engine.precision == "bfloat16":
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        # With ZeRO-3 no worker holds the whole network; pictures are made with a copy.
        self.copy = copy.deepcopy(module).cpu() if self.stage == 3 else None
        self.names = trained(module)
        optimizer = make_optimizer(recipe.optimizer, list(self.names.values()))
        self.engine: Any = deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
        self.module = self.engine
        self.network = module
        self.base: Any = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def step(self, parts: Sequence[P], loss: Callable[[P], Tensor], rate: float) -> Step:
        """Take one step; gradients are averaged over micro-batches and workers."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        total, norm = torch.zeros((), device=self.device), 0.0
        for part in parts:
            with self.precision():
                made = loss(part)
            _finite(made.item(), "loss")
            self.engine.backward(made)
            if self.stage == 0 and self.engine.is_gradient_accumulation_boundary():
                # DeepSpeed returns no norm here; the gradients are whole and averaged already.
                gradients = [p.grad for p in self.names.values() if p.grad is not None]
                norm = _finite(nn.utils.get_total_norm(gradients).item(), "gradient's norm")
            self.engine.step()
            total += made.detach() / len(parts)
        distributed.all_reduce(total)
        if self.stage:
            norm = _finite(float(self.engine.get_global_grad_norm()), "gradient's norm")
        return Step(total.item() / distributed.get_world_size(), norm)

    def state(self) -> State:
        """Return weights and optimizer, gathered from all workers."""
        weights = self.whole(self.held())
        if self.stage == 0:
            return {"module": weights, "optimizer": self.base.state_dict()}
        from deepspeed.utils import safe_get_full_optimizer_state

        kept = next(iter(self.base.state.values()))
        state: dict[int, dict[str, Any]] = {}
        for number, parameter in enumerate(self.names.values()):
            state[number] = {
                key: value if key == "step" else safe_get_full_optimizer_state(parameter, key)
                for key, value in kept.items()
            }
            # Gathered one by one, so that a GPU never holds them all.
            state[number] = {key: value.cpu() for key, value in state[number].items()}
        return {"module": weights, "optimizer": {"state": state}}

    def restore(self, optimizer: dict[str, Any]) -> None:
        """Continue with an optimizer's state; each worker takes its part."""
        state: dict[int, dict[str, Tensor]] = optimizer["state"]
        if self.stage == 0:
            groups = self.base.state_dict()["param_groups"]
            self.base.load_state_dict({"state": state, "param_groups": groups})
            return
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        self._make_state(state[0])
        for number, parameter in enumerate(self.names.values()):
            for key, value in state[number].items():
                if key == "step":
                    continue
                if self.stage == 3:
                    mine = _mine(parameter, value.to(self.device))
                    safe_set_local_optimizer_state(parameter, mine, key)
                else:
                    safe_set_full_optimizer_state(parameter, value.to(self.device), key)

    def _make_state(self, one: dict[str, Tensor]) -> None:
        """Give the optimizer the state that it has after a first step; `one` is a parameter's.

        DeepSpeed links parameters to their parts of the state only after a first step.
        """
        zero = self.engine.optimizer
        flat = (
            zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else zero.single_partition_of_fp32_groups
        )
        for values in flat:
            self.base.state[values] = unmoved(one, values)
        if self.stage < 3:
            zero._lazy_init_hp_params_optimizer_state()

    def held(self) -> dict[str, Tensor]:
        """Return the network's state dict; with ZeRO-3 parameters are this worker's parts."""
        if self.stage < 3:
            return self.network.state_dict()
        parts = {name: cast(Any, p).ds_tensor for name, p in self.network.named_parameters()}
        return parts | dict(self.network.named_buffers())

    def whole(self, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a whole state dict; with ZeRO-3 it is gathered parameter by parameter."""
        if self.stage < 3:
            return dict(held)
        found = dict(held)
        for name, parameter in cast(Any, self.network.named_parameters()):
            mine = held[name].contiguous()
            gathered = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
            distributed.all_gather(gathered, mine)
            flat = torch.cat(gathered)[: math.prod(parameter.ds_shape)]
            found[name] = flat.view(parameter.ds_shape)
        return found

    def part(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a whole state dict on the device; with ZeRO-3 this worker's parts."""
        found = {name: value.to(self.device) for name, value in whole.items()}
        if self.stage == 3:
            for name, parameter in self.network.named_parameters():
                found[name] = _mine(parameter, found[name])
        return found

    def lend(self, whole: Mapping[str, Tensor]) -> AbstractContextManager[nn.Module]:
        """Lend the network, or with ZeRO-3 a copy of it."""
        if self.copy is None:
            return _lent(self.network, whole)
        return _lent(self.copy.to(self.device), whole)


def _mine(parameter: Any, whole: Tensor) -> Tensor:
    """Return this worker's flat part of a whole tensor, as ZeRO-3 divides the parameter."""
    flat, size = whole.flatten(), parameter.ds_tensor.numel()
    padded = nn.functional.pad(flat, (0, size * distributed.get_world_size() - flat.numel()))
    return padded[size * distributed.get_rank() :][:size].clone()


@contextmanager
def _lent(module: nn.Module, whole: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    own = {name: value.detach().clone() for name, value in module.state_dict().items()}
    training = module.training
    module.load_state_dict(whole)
    try:
        yield module.eval()
    finally:
        module.load_state_dict(own)
        module.train(training)


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise NotFiniteError(f"the {what} is {value}")
    return value


def micro_batches(batch: P, count: int) -> list[P]:
    """Cut a batch into equal parts, along the first dimension of all arrays in it.

    Args:
        batch: a tensor, an array, None, or a dataclass, tuple, list or dict of them.
        count: number of parts; it divides the batch.
    """
    if count == 1:
        return [batch]
    return [_cut(batch, number, count) for number in range(count)]


def _cut(value: Any, number: int, count: int) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        size = len(value) // count
        return value[number * size : (number + 1) * size]
    if isinstance(value, dict):
        return {name: _cut(item, number, count) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_cut(item, number, count) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _cut(getattr(value, f.name), number, count) for f in fields(value)}
        )
    return value
