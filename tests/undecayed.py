"""A small network with a batch normalisation that is not decayed, on one worker or two."""

from typing import Any

import torch
from together import CPU, engine_recipe, steps
from torch import nn

from factory.recipe import FRRecipe
from factory.training.engines import make_engine


def normed() -> nn.Module:
    """Return linear layers, a PReLU, and two normalisations of which only one is of batches."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.PReLU(12), nn.LayerNorm(12), nn.Linear(12, 1)
    )
    return made


def undecayed(optimizer: str, workers: int = 1, decay: float = 0.1, **engine: Any) -> FRRecipe:
    """Return a recipe that leaves batch normalisations undecayed."""
    recipe = engine_recipe(optimizer, workers, **engine)
    changed = {"decay_norms": False, "weight_decay": decay, "clip_norm": 0.0}
    return recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update=changed)})


def run_undecayed(rank: int, world: int, stages: tuple[int, ...], at: int) -> dict[int, Any]:
    """Train with each ZeRO stage; return what the workers hold afterwards and its losses."""
    found = {}
    for stage in stages:
        recipe = undecayed("adamw", world, deepspeed={"zero_stage": stage})
        engine = make_engine(recipe, normed(), CPU)
        engine.module.apply(held_still)
        losses, *_ = steps(engine, 0, at, rank, world)
        state = engine.state()
        cloned = {name: value.clone() for name, value in state["module"].items()}
        kept = {
            number: {key: torch.as_tensor(value).clone() for key, value in one.items()}
            for number, one in state["optimizer"]["state"].items()
        }
        found[stage] = {"losses": losses, "module": cloned, "optimizer": {"state": kept}}
    return found


def held_still(part: nn.Module) -> None:
    """Keep a batch normalisation's statistics, which would differ by worker, as they are."""
    if isinstance(part, nn.BatchNorm1d):
        part.eval()
