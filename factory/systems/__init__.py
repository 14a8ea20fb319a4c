"""Systems: one way to make faces each, one file each."""

import importlib
import pkgutil
from typing import Any

from factory.recipe import GenerateRecipe, InputError
from factory.systems.base import System

# Modules of this package that are no system.
SHARED = ("base", "contexts", "sampling", "styles", "training")


def names() -> list[str]:
    """Return the systems there are: one module in this package each."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def system_class(name: str) -> type[System]:
    """Return the class of a system; InputError names the systems there are."""
    return _module(name).SYSTEM


def create(recipe: GenerateRecipe) -> System:
    """Make the recipe's system and check the recipe's fields against it; loads no weights."""
    return system_class(recipe.system)(recipe)


def training_class(name: str) -> Any:
    """Return what trains a system's denoiser; InputError where the system has nothing to train."""
    module = _module(name)
    if not hasattr(module, "TRAINING"):
        trained = ", ".join(n for n in names() if hasattr(_module(n), "TRAINING"))
        raise InputError(f"recipe field system: {name!r} trains nothing; accepted: {trained}")
    return module.TRAINING


def _module(name: str) -> Any:
    if name not in names():
        raise InputError(f"recipe field system: {name!r}; accepted: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
