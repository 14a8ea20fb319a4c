"""Functions that several processes of a torch.distributed group run together, for tests."""

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn

from factory.datasets.store import Store
from factory.recipe import FRRecipe, parse
from factory.training import checkpoint
from factory.training.average import Average
from factory.training.centres import Centres
from factory.training.engines import TrainingEngine, make_engine, micro_batches

CPU = torch.device("cpu")
BATCH = 8


def together(world: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Call a function of this module in `world` processes; return what each returned."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    multiprocessing.spawn(_member, (world, port, function, folder, arguments), nprocs=world)
    return [torch.load(folder / f"result-{rank}", weights_only=True) for rank in range(world)]


def _member(
    rank: int,
    world: int,
    port: int,
    function: Callable[..., Any],
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    warnings.filterwarnings("ignore")
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.save(function(rank, world, *arguments), folder / f"result-{rank}")
    distributed.barrier()
    distributed.destroy_process_group()


def in_turn(
    rank: int, world: int, calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]
) -> list[Any]:
    """Call several functions of this module, for the price of one start; return what each did."""
    return [function(rank, world, *arguments) for function, arguments in calls]


def engine_recipe(optimizer: str = "sgd", workers: int = 1, **engine: Any) -> FRRecipe:
    """Return a recipe of which only engine, optimizer and batch size are used."""
    settings = {"name": "deepspeed", "workers": workers, "precision": "float32"} | engine
    made = parse(
        {
            "kind": "fr",
            "name": "engine",
            "seed": 5,
            "licence": "Apache-2.0",
            "image": {"size": 32},
            "data": {"train": "nowhere"},
            "backbone": {"name": "r18", "embedding_size": 8},
            "head": {"name": "cosface", "scale": 16, "margin": 0.2},
            "optimizer": {"name": optimizer, "lr": 0.05, "weight_decay": 0.01, "clip_norm": 0.5},
            "schedule": {"steps": 9, "batch_size": BATCH},
            "engine": settings,
            "checkpoint": {"every_steps": 1},
        }
    )
    assert isinstance(made, FRRecipe)
    return made


def network() -> nn.Module:
    """Return a small network without batch norms, whose blocks can be computed again."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(20, 20), nn.GELU(), nn.Linear(20, 20))
    return nn.Sequential(nn.Linear(6, 20), block, nn.LayerNorm(20), nn.Linear(20, 1))


def examples(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the whole batch of a step."""
    draws = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 6, generator=draws)
    return x, x.square().sum(dim=1, keepdim=True).sin()


def steps(
    engine: TrainingEngine, start: int, stop: int, rank: int = 0, world: int = 1
) -> tuple[list[float], Average, list[float]]:
    """Take steps on this worker's rows; return losses, the average and gradient norms."""
    average, losses, norms = Average(engine.held(), 0.9), [], []
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)

    def loss(part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return (engine.module(part[0]).float() - part[1]).square().mean()

    for step in range(start, stop):
        x, y = examples(step)
        parts = micro_batches((x[own], y[own]), engine.recipe.deepspeed.accumulation_steps)
        made = engine.step(parts, loss, 0.05)
        average.update(engine.held(), step)
        losses.append(made.loss)
        norms.append(made.norm)
    return losses, average, norms


def precision_of(settings: dict[str, Any]) -> str:
    """Return the precision of an engine's settings."""
    return settings.get("precision", "float32")


def run_engines(
    rank: int, world: int, cases: dict[str, tuple[str, dict[str, Any]]], start: Path, at: int
) -> dict[str, Any]:
    """Run each case from scratch, and from a state saved after `at` steps, to twice that."""
    held = torch.load(start, weights_only=True)
    found: dict[str, Any] = {}
    for name, (optimizer, settings) in cases.items():
        recipe = engine_recipe(optimizer, world, **settings)
        engine = make_engine(recipe, network(), CPU)
        losses, average, norms = steps(engine, 0, at, rank, world)
        state = engine.state()
        whole = engine.whole(average.state)
        with engine.lend(whole) as lent:
            shown = lent(examples(0)[0]).detach()
        resumed = make_engine(
            recipe, network(), CPU, _cloned(held[optimizer, precision_of(settings)])
        )
        later, *_ = steps(resumed, at, 2 * at, rank, world)
        found[name] = {
            "losses": losses,
            "norms": norms,
            "state": _cloned(state),
            "average": _cloned(whole),
            "shown": shown,
            "later": later,
        }
    return found


def meet_nan(rank: int, world: int) -> tuple[str, bool]:
    """Step at a loss of 0 whose gradient is NaN; return what is said and whether weights stay."""
    recipe = engine_recipe("sgd", world, deepspeed={"zero_stage": 0})
    engine = make_engine(recipe, network(), CPU)
    before, said = _cloned(engine.held()), ""
    try:
        part = examples(0)[0][: BATCH // world]
        engine.step([part], lambda x: (engine.module(x) * 0).abs().sqrt().mean(), 0.05)
    except ArithmeticError as error:
        said = str(error)
    return said, all(torch.equal(value, before[name]) for name, value in engine.held().items())


def agree(rank: int, world: int, folder: Path) -> int | None:
    """Return the step from which workers continue whose listings differ; rank 0's is the newest."""
    store = Store(folder / f"seen-by-{rank}")
    for step in (4, 8) if rank == 0 else (4,):
        checkpoint.commit(store, step, {})
    return checkpoint.agreed(store)


def run_centres(rank: int, world: int, name: str, rate: float, folder: str) -> dict[str, Any]:
    """Take three steps over sharded centres; return losses, gradients and all of the state."""
    recipe = engine_recipe()
    head = recipe.head.model_copy(update={"name": name, "sample_rate": rate})
    recipe = recipe.model_copy(update={"head": head})
    centres = Centres(recipe, 11, CPU, rank, world)
    losses, gradients, rows = [], [], []
    for step in range(3):
        draws = torch.Generator().manual_seed(step)
        embeddings = 20 * torch.randn(BATCH, 8, generator=draws)
        labels = torch.randint(0, 11, (BATCH,), generator=draws)
        own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        mine = embeddings[own].clone().requires_grad_()
        centres.sample(step, labels[own])
        loss = centres.loss(mine, labels[own])
        loss.backward()
        assert mine.grad is not None
        centres.step(0.1)
        losses.append(loss.item())
        gradients.append(mine.grad / world)
        rows.append(len(centres.sampled))
    torch.save(centres.state(), f"{folder}/{name}-{rate}-{world}-{rank}")
    return {"losses": losses, "gradients": torch.stack(gradients), "rows": rows}


def _cloned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _cloned(item) for name, item in value.items()}
    return value


def count_bytes(rank: int, world: int, stage: int) -> dict[str, int]:
    """Take two AdamW steps of a larger network; count what this worker holds and hands over.

    What is handed over is counted in whole tensors, as the arithmetic of docs/scaling.md does.
    """
    from deepspeed import comm

    moved = {"all_reduce": 0, "reduce": 0, "reduce_scatter": 0, "all_gather": 0}

    def counted(name: str, kind: str, place: int) -> None:
        call = getattr(comm, name)

        def count(*arguments: Any, **named: Any) -> Any:
            tensors = arguments[place]
            for tensor in tensors if isinstance(tensors, list) else [tensors]:
                moved[kind] += tensor.numel() * tensor.element_size()
            return call(*arguments, **named)

        setattr(comm, name, count)

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.Linear(512, 64))
    parameters = sum(p.numel() for p in module.parameters())
    recipe = engine_recipe("adamw", world, deepspeed={"zero_stage": stage})
    engine = make_engine(recipe, module, CPU)
    x = torch.randn(BATCH // world, 64)
    engine.step([x], lambda part: engine.module(part).square().mean(), 0.01)
    for name, kind, place in (
        ("all_reduce", "all_reduce", 0),
        ("reduce", "reduce", 0),
        ("all_gather", "all_gather", 0),
        ("all_gather_into_tensor", "all_gather", 0),
        ("reduce_scatter_fn", "reduce_scatter", 1),
    ):
        counted(name, kind, place)
    engine.step([x], lambda part: engine.module(part).square().mean(), 0.01)
    base: Any = engine.base  # type: ignore[attr-defined]
    optimizer = sum(
        value.numel() * 4 for kept in base.state.values() for value in kept.values() if value.ndim
    )
    held = sum(value.numel() * 4 for value in engine.held().values())
    return {"parameters": parameters, "optimizer": optimizer, "held": held, **moved}
