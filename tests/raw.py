"""Recipes of every kind as mappings, to be changed one field at a time."""

import copy
from typing import Any

GENERATE: dict[str, Any] = {
    "kind": "generate",
    "name": "faces",
    "seed": 1,
    "system": "studio",
    "licence": "CC0-1.0",
    "image": {"size": 64},
    "identities": {"count": 20, "images_each": 8, "source": "train"},
    "shard": {"identities": 10},
    "workers": {"max": 2},
    "cost": {"seconds_per_image": [0.01, 0.02], "source": "a test"},
    "weights": {"teacher": {"location": "package:weights/t.safetensors", "sha256": "a" * 64}},
}
LOOKALIKE = {"max_cosine": 0.5, "embeddings": {"location": "real.npy", "sha256": "c" * 64}}
ENGINE = {"name": "torch"}
OPTIMIZER = {"name": "sgd", "lr": 0.1}
TRAIN: dict[str, Any] = {
    "kind": "train",
    "name": "unet",
    "seed": 1,
    "system": "idiff_face",
    "licence": "Apache-2.0",
    "image": {"size": 64},
    "data": {"train": "runs/faces"},
    "model": {},
    "optimizer": OPTIMIZER,
    "schedule": {"steps": 10, "batch_size": 4},
    "engine": ENGINE,
    "checkpoint": {"every_steps": 5},
}
BANK: dict[str, Any] = {
    "kind": "bank",
    "name": "bank",
    "seed": 1,
    "licence": "CC0-1.0",
    "candidates": {"url": "runs/faces", "digest": "0" * 16},
    "weights": {"recognizer": {"location": "r.safetensors"}},
    "max_cosine": 0.3,
    "known": {"location": "real.npy", "sha256": "c" * 64},
    "workers": {"max": 1},
}
COMPOSE: dict[str, Any] = {
    "kind": "compose",
    "name": "mix",
    "seed": 1,
    "pools": {"a": {"url": "runs/faces"}},
}
FR: dict[str, Any] = {
    **{name: TRAIN[name] for name in TRAIN if name not in ("system", "model")},
    "kind": "fr",
    "backbone": {"name": "r18"},
    "head": {"name": "cosface"},
}


def changed(base: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(base)
    *parents, leaf = field.split(".")
    part = raw
    for name in parents:
        part = part.setdefault(name, {})
    part[leaf] = value
    return raw
