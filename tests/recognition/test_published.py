"""Published recognizers' layouts, filled from names alone, give what their authors' networks give.

`published.json` holds figures measured on the official code (seed 1, float32, CPU): 24 numbers of
each of two embeddings, their lengths and their cosine, and a digest of the layout itself.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from filled import filled, normals, picture

from factory.recognition.recognizers import load_recognizer

FIGURES: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text())
R50, R100, R200 = (3, 4, 14, 3), (3, 13, 30, 3), (6, 26, 60, 6)
LAYOUTS = {
    "arcface_torch_mbf": zoo.mbf(),
    "arcface_torch_r50": zoo.arcface_torch(R50),
    "arcface_torch_r100": zoo.arcface_torch(R100),
    "arcface_torch_r200": zoo.arcface_torch(R200),
    "magface_iresnet100": zoo.arcface_torch(R100, "features.module."),
    "adaface_ir18": zoo.adaface((2, 2, 2, 2)),
    "adaface_ir50": zoo.adaface(R50),
    "adaface_ir101": zoo.adaface(R100),
}
FAST = ("arcface_torch_mbf", "arcface_torch_r50", "adaface_ir18", "magface_iresnet100")
RELATIVE = 1e-5  # of the published figures, as measured by other kernels


class Callback:
    """A class that a checkpoint names and that whoever reads it may not have."""


def contained(name: str, weights: dict[str, torch.Tensor]) -> tuple[str, Any]:
    """Return the reference of a published file and what it holds beside the weights."""
    if name.startswith("adaface"):
        head = {"head.kernel": torch.zeros(512, 10), "head.t": torch.zeros(1)}
        return "adaface:{}?channels=bgr", {
            "state_dict": weights | head,
            "epoch": 25,
            "callbacks": {Callback: {"best_model_score": np.float64(0.97)}},
        }
    if name.startswith("magface"):
        inside = weights | {"fc.weight": torch.zeros(512, 10)}
        return "magface:{}", {"epoch": 25, "arch": "iresnet100", "state_dict": inside}
    if name == "arcface_torch_r50":
        return "arcface_torch:{}", {
            "epoch": 1,
            "global_step": np.int64(7),
            "state_dict_backbone": weights,
            "state_dict_softmax_fc": {"weight": torch.zeros(10, 512)},
            "state_lr_scheduler": {"base_lrs": [np.float32(0.1)]},
        }
    return "arcface_torch:{}", weights


def apart(found: np.ndarray, truth: Any) -> float:
    return float(np.linalg.norm(found - np.array(truth)) / np.linalg.norm(truth))


def test_the_formula_is_the_published_one() -> None:
    drawn = normals("model.out.2.weight", (4,), seed=1)
    assert drawn == pytest.approx([0.766361557, -1.289601542, -3.153998039, 0.303639529])
    shown = picture("id_image", 112, seed=1)
    assert shown.flatten()[:8].tolist() == [113, 173, 64, 75, 221, 49, 85, 213]
    assert shown.sum(dtype=np.int64) == 4660354


@pytest.mark.parametrize("name", FIGURES)
def test_a_layout_is_the_published_one(name: str) -> None:
    assert zoo.digest(LAYOUTS[name]) == FIGURES[name]["layout"]


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in FIGURES]
)
def test_a_published_recognizer_embeds_as_its_authors_does(name: str, tmp_path: Path) -> None:
    reference, held = contained(name, filled(LAYOUTS[name], seed=1))
    torch.save(held, tmp_path / "checkpoint_gpu_0.pt")
    del held
    loaded = load_recognizer(reference.format(tmp_path / "checkpoint_gpu_0.pt"))
    assert (loaded.size, loaded.dimension) == (112, 512)
    images = np.stack([picture("face_a", 112, seed=1), picture("face_b", 112, seed=1)])
    embeddings = loaded.embed(images)
    figures = FIGURES[name]
    lengths = np.linalg.norm(embeddings, axis=1)
    for found, length, truth in zip(embeddings, lengths, (figures["a"], figures["b"]), strict=True):
        assert apart(found[truth["index"]], truth["value"]) < RELATIVE
        assert apart(length, truth["l2"]) < RELATIVE
    cosine = float(embeddings[0] @ embeddings[1] / lengths.prod())
    assert cosine == pytest.approx(figures["cosine"], abs=1e-5)
