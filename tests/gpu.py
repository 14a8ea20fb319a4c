"""A GPU that is none: its tensors compute on the CPU and refuse, as a GPU's do, to meet the CPU's.

Inside `pretended_gpu()` whatever is made on `cuda` or sent there says that it lies there. A call of
torch that mixes it with a CPU tensor of one dimension or more fails as on a GPU, and so does Numpy.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from students import drawn
from torch import Tensor
from torch.overrides import TorchFunctionMode

from factory.diffusion.trainable import Place
from factory.recipe import GenerateRecipe, TrainRecipe
from factory.systems.sampling import DiffusionSystem
from factory.systems.training import DenoiserTraining

R = TypeVar("R", GenerateRecipe, TrainRecipe)

NAME = "Pretended GPU"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DEVICE, IS_CUDA, GRAD = (getattr(Tensor, name).__get__ for name in ("device", "is_cuda", "grad"))
COPIES = {Tensor.copy_, Tensor.__setitem__, torch._has_compatible_shallow_copy_type}
PICKS = {Tensor.__getitem__, Tensor.index_put, Tensor.index_put_}  # by indices from the CPU too
STRICT = {"cat", "stack", "_fused_adam_", "_fused_adamw_"}  # take no number from the CPU


class OnGPU(Tensor):
    """A tensor that says it lies on a GPU."""


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Have a GPU for the length of a block, and leave torch's settings as they were."""
    with pytest.MonkeyPatch.context() as patch, settings_kept():
        patch.setattr(torch.cuda, "get_device_name", lambda: NAME)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a class is not `.data`
        with PretendedGPU():
            yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Undo what `factory.cluster.hardware` sets for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        for name in ("benchmark", "deterministic"):
            patch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        yield
    torch.use_deterministic_algorithms(False)


class PretendedGPU(TorchFunctionMode):
    """Keeps what lies on the GPU apart from what does not."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch as a machine with a GPU would."""
        kwargs = dict(kwargs or {})
        here = bool(args) and isinstance(args[0], OnGPU)
        if func == DEVICE:
            return GPU if here else CPU
        if func == IS_CUDA:
            return here
        if here and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.__reduce_ex__:  # files are loaded to the CPU
            return _placed(args[0], CPU).__reduce_ex__(args[1])
        if func is Tensor.cpu:
            return _placed(args[0].clone() if here else args[0], CPU)
        if func is Tensor.to:
            return _to(*args, **kwargs)
        _meet(func, args, kwargs)
        asked = kwargs.pop("device", None)
        made: Any = func(*args, **kwargs)
        if func == GRAD and here and made is not None:
            return _placed(made, GPU)
        return made if asked is None else _placed(made, torch.device(asked))


def _placed(tensor: Any, device: torch.device) -> Tensor:
    return tensor.as_subclass(OnGPU if device.type == "cuda" else Tensor)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    device = kwargs.pop("device", None)
    for given in args:
        if isinstance(given, str | torch.device):
            device = given
        elif isinstance(given, torch.dtype):
            kwargs["dtype"] = given
        elif isinstance(given, Tensor):
            device, kwargs["dtype"] = GPU if isinstance(given, OnGPU) else CPU, given.dtype
    there = isinstance(tensor, OnGPU) if device is None else torch.device(device).type == "cuda"
    kwargs["copy"] = kwargs.get("copy", False) or there != isinstance(tensor, OnGPU)
    kwargs.setdefault("dtype", tensor.dtype)
    return _placed(_placed(tensor, CPU).to(**kwargs), GPU if there else CPU)


def _meet(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse tensors of both devices; most functions take numbers of the CPU with a GPU's."""
    if func in COPIES or (func in PICKS and isinstance(args[0], OnGPU)):
        return
    strict, found = getattr(func, "__name__", "") in STRICT, list(_tensors((args, kwargs)))
    there = {isinstance(one, OnGPU) for one in found if one.ndim or strict or type(one) is OnGPU}
    if len(there) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def on_gpu(recipe: R) -> R:
    """Return a recipe whose actors or workers reserve a GPU."""
    field = "workers" if isinstance(recipe, GenerateRecipe) else "engine"
    part = getattr(recipe, field).model_copy(update={"num_gpus": 1.0})
    return recipe.model_copy(update={field: part})


def same_step(kind: type[DenoiserTraining], recipe: TrainRecipe, folder: Path) -> None:
    """Assert that a system trains a step, and draws its samples, on a GPU as on a CPU."""
    with pretended_gpu():
        found = _step(kind, on_gpu(recipe), folder / "gpu")
    for name, value in _step(kind, recipe, folder / "cpu").items():
        assert np.allclose(found[name], value, atol=2e-3), name


def _step(kind: type[DenoiserTraining], recipe: TrainRecipe, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    held = kind(recipe, Place(0, 1, folder)).load()
    held.module.to(held.device)
    loss, numbers = held.loss(held.module.train(), next(iter(held.batches(0, 1))))
    loss.backward()
    assert all(type(p.grad) is type(loss) for p in held.module.parameters() if p.grad is not None)
    return {**numbers, "samples": held.samples(held.module.eval()) / 255.0}


def same_images(kind: type[DiffusionSystem], recipe: GenerateRecipe) -> None:
    """Assert that a system draws identities and images on a GPU as on a CPU."""
    with pretended_gpu():
        found = _drawn(kind, on_gpu(recipe), range(3))
    assert np.abs(found - _drawn(kind, recipe, range(3))).max() <= 1


def _drawn(
    kind: type[DiffusionSystem], recipe: GenerateRecipe, identities: Sequence[int]
) -> np.ndarray:
    system = kind(recipe)
    system.load()
    return drawn(system, identities).astype(int)
