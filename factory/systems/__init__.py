"""Systems: each is one way to make faces, in one file."""

import importlib
import pkgutil
from typing import Any

from factory.recipe import GenerateRecipe, InputError
from factory.systems.base import System

# Modules of this package that are not systems.
SHARED = ("base", "context_file", "contexts", "inliers", "sampling", "styles", "training")


def names() -> list[str]:
    """Return the names of all systems; each is a module of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def system_class(name: str) -> type[System]:
    """Return the class of a system; InputError if there is no system of this name."""
    return _module(name).SYSTEM


def create(recipe: GenerateRecipe) -> System:
    """Make the recipe's system and check the recipe's fields against it; loads no weights."""
    return system_class(recipe.system)(recipe)


def training_class(name: str) -> Any:
    """Return the class that trains a system's denoiser; InputError if it has no denoiser."""
    module = _module(name)
    if not hasattr(module, "TRAINING"):
        trained = ", ".join(n for n in names() if hasattr(_module(n), "TRAINING"))
        raise InputError(f"recipe field system: {name!r} trains nothing; accepted: {trained}")
    return module.TRAINING


def _module(name: str) -> Any:
    if name not in names():
        raise InputError(f"recipe field system: {name!r}; accepted: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
