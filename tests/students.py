"""What every system's students are held to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factory.diffusion.trainable import Place
from factory.recipe import TrainRecipe
from factory.systems.base import Position
from factory.systems.sampling import DiffusionSystem
from factory.systems.training import DenoiserTraining

FEW: dict[str, Any] = {"steps": 2, "teacher_steps": 4, "batches": 3}
SAMPLER: dict[str, Any] = {"name": "ddim", "steps": 2, "batch_size": 4, "dtype": "float32"}


def learned(trained: DenoiserTraining) -> list[float]:
    """Train a student for 60 steps and return the error of each."""
    optimizer = torch.optim.AdamW(trained.module.parameters(), 2e-3)
    errors = []
    for batch in trained.batches(0, 60):
        assert batch.looks is None  # no identity loss, whatever the default of the system
        loss, numbers = trained.loss(trained.module.train(), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(numbers["error"])
    return errors


def taught(kind: type[DenoiserTraining], recipe: TrainRecipe, folder: Path) -> Path:
    """Train a student, assert that it nears its teacher, and return its file."""
    torch.manual_seed(0)
    trained = kind(recipe, Place(0, 1, folder)).load()
    errors = learned(trained)
    assert np.mean(errors[-6:]) < 0.5 * np.mean(errors[:6])
    trained.save(trained.module.eval(), folder / "few.safetensors", {"licence": "CC0-1.0"})
    return folder / "few.safetensors"


def drawn(system: DiffusionSystem, identities: Sequence[int] = (0, 1)) -> np.ndarray:
    """Return an image of each identity by a loaded system."""
    contexts = system.draw_contexts(identities)
    if system.banked:
        system.meet(contexts)
    places = [Position(identity, 0, 0) for identity in identities]
    return system.sample(system.vary(contexts, places), places).images
