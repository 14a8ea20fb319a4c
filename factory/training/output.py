"""Whose output folder it is: a training goes on only where its own recipe stands."""

import json
from typing import Any

from pydantic import BaseModel

from factory.recipe import InputError, canonical, parse
from factory.shards.store import Store
from factory.training import checkpoint

RECIPE = "recipe.json"
RECORD = "training.json"
# What only decides where and how safely it runs; a resumed training may differ in it.
FREE = ("engine.", "checkpoint.", "benchmarks")
BOUND = "engine.precision"


def check_output(store: Store, recipe: BaseModel) -> None:
    """Raise InputError when the output is another recipe's training, naming the fields."""
    if not store.exists(RECIPE):
        if next(iter(store.list(checkpoint.FOLDER)), None) is not None:
            raise InputError(f"--out {store.url}: holds checkpoints but no {RECIPE}")
        return
    held = _leaves(parse(json.loads(store.read(RECIPE))).model_dump(mode="json"))
    wanted = _leaves(recipe.model_dump(mode="json"))
    differing = [
        f"{name} is {held.get(name)!r} there, {wanted.get(name)!r} here"
        for name in sorted(held.keys() | wanted.keys())
        if held.get(name) != wanted.get(name) and (name == BOUND or not name.startswith(FREE))
    ]
    if differing:
        raise InputError(
            f"--out {store.url}: holds another recipe's training: {', '.join(differing)}"
        )


def claim(store: Store, recipe: BaseModel) -> None:
    """State whose output it is, having checked that it is nobody else's."""
    check_output(store, recipe)
    store.write(RECIPE, canonical(recipe).encode())


def _leaves(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value, f"{path}.{name}" if path else name)
    return found
