"""Systems: each is one way to make faces, in one file."""

import importlib
import os
import pkgutil
from importlib.util import find_spec
from typing import Any

from factory.recipe import GenerateRecipe, InputError
from factory.systems.base import System

# Modules of this package that are not systems.
SHARED = ("base", "context_file", "contexts", "inliers", "sampling", "styles", "training")
ELSEWHERE = "FACTORY_SYSTEMS"  # names modules outside this package, as in my.module,other


def names() -> list[str]:
    """Return the names of all systems; each is a module, of this package or in FACTORY_SYSTEMS."""
    return sorted(_modules())


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
    modules = _modules()
    if name not in modules:
        raise InputError(f"recipe field system: {name!r}; accepted: {', '.join(sorted(modules))}")
    module = importlib.import_module(modules[name])
    if not hasattr(module, "SYSTEM"):
        raise InputError(f"{ELSEWHERE}: {modules[name]} has no SYSTEM; accepted is its class")
    return module


def _modules() -> dict[str, str]:
    """Return the module of each system by its name, which is the last part of the module's."""
    own = (m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)
    found = {name: f"{__name__}.{name}" for name in own}
    for module in filter(None, os.environ.get(ELSEWHERE, "").split(",")):
        name = module.rpartition(".")[2]
        if name in found:
            raise InputError(f"{ELSEWHERE}: {module}; there is a system {name}: {found[name]}")
        try:
            known = find_spec(module) is not None
        except (ImportError, ValueError):  # nor is there what it would lie in; or it is no name
            known = False
        if not known:
            raise InputError(f"{ELSEWHERE}: {module!r}; accepted are modules that can be imported")
        found[name] = module
    return found
