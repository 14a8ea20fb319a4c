"""A recognizer written as ONNX gives onnxruntime the same embeddings."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from factory.recipe import Backbone, local_path
from factory.recognition.backbones import make_backbone
from factory.recognition.onnx_export import save_onnx
from factory.recognition.recognizers import load_recognizer, save_recognizer

SMALL = {"embedding_size": 24}
BACKBONES = {
    "iresnet": Backbone(name="iresnet", widths=(8, 8, 12, 16), depths=(1, 2, 1, 1), **SMALL),
    "r18": Backbone(name="r18", **SMALL),
    "ir_se50": Backbone(name="ir_se50", **SMALL),
    "mobilefacenet": Backbone(name="mobilefacenet", **SMALL),
}


def compare(reference: str, size: int, path: Path) -> None:
    own = load_recognizer(reference)
    save_onnx(own, path)
    theirs = load_recognizer(f"onnx:{path}")
    images = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    made, read = own.embed(images), theirs.embed(images)
    scale = np.abs(made).max()
    assert np.abs(made - read).max() <= 1e-4 * max(scale, 1.0)
    assert theirs.dimension == own.dimension and theirs.size == size


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_gives_the_same_embeddings(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    backbone, path = BACKBONES[name], tmp_path / "own.safetensors"
    weights = make_backbone(backbone, 32).state_dict()
    save_recognizer(path, weights, backbone, 32, name, "Apache-2.0")
    compare(str(path), 32, tmp_path / "made.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "made.onnx"), full_check=True)


def test_the_shipped_teacher_gives_the_same_embeddings(tmp_path: Path) -> None:
    shipped = "package:weights/teacher/recognizer.safetensors"
    assert local_path(shipped).is_file()
    compare(shipped, 64, tmp_path / "teacher.onnx")
