"""Leakage against every cosine, computed one by one."""

import hashlib

import numpy as np
import pytest
import torch
from faces import face, make_pool

from factory.datasets.compose import compose
from factory.datasets.store import Store
from factory.recipe import Backbone, InputError, KnownFaces, Weights, parse
from factory.recognition.backbones import make_backbone
from factory.recognition.faces import save_faces
from factory.recognition.recognizers import load_recognizer, save_recognizer
from factory.search.leakage import leakage


def test_leakage_is_the_mean_of_the_highest_cosines(tmp_path):
    torch.manual_seed(0)
    sizes = {"name": "iresnet", "widths": [8] * 4, "depths": [1] * 4, "embedding_size": 16}
    backbone, file = Backbone.model_validate(sizes), tmp_path / "recognizer.safetensors"
    save_recognizer(file, make_backbone(backbone, 32).state_dict(), backbone, 32, "r", "CC0-1.0")
    recognizer = load_recognizer(str(file))

    def unit(images):
        embedded = recognizer.embed(np.stack(images)).astype(np.float64)
        return embedded / np.linalg.norm(embedded, axis=1, keepdims=True)

    real = unit([face(n, 0, 32, world=7) for n in range(9)])
    known = KnownFaces(
        location=str(tmp_path / "known.safetensors"),
        sha256=save_faces(tmp_path / "known.safetensors", real, recognizer.sha256),
    )
    views = {
        "a": {"url": make_pool(tmp_path / "a", 6, 3), "identities": 4, "images_each": 2},
        "b": {"url": make_pool(tmp_path / "b", 5, 2, world=1)},
    }
    recipe = parse({"kind": "compose", "name": "c", "seed": 1, "pools": views})
    made = compose(recipe, Store(tmp_path / "c"))
    taken = [face(i, j, 32) for i in range(4) for j in range(2)]
    taken += [face(i, j, 32, world=1) for i in range(5) for j in range(2)]
    highest = (unit(taken) @ real.T).max(axis=1)
    weights = Weights(location=str(file), licence="CC0-1.0")
    found = leakage(Store(tmp_path / "c"), made, weights, known)
    assert found == pytest.approx(highest.mean(), abs=1e-3)  # pools hold the faces as JPEG
    other = weights.model_copy(update={"sha256": hashlib.sha256(b"").hexdigest()})
    with pytest.raises(InputError, match="space known"):
        leakage(Store(tmp_path / "c"), made, other, known)
    # Faces of the stated recognizer, but the file there is another one: nothing is cached for it.
    of_other = save_faces(tmp_path / "other.safetensors", real, other.sha256)
    faces = KnownFaces(location=str(tmp_path / "other.safetensors"), sha256=of_other)
    with pytest.raises(InputError, match=f"recognizer.sha256: {other.sha256}, but "):
        leakage(Store(tmp_path / "c"), made, other, faces)
