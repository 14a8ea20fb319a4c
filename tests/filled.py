"""Checkpoints in the layouts that authors publish, their weights a function of names alone.

Whatever network is built from a file filled so, by whomever, answers with the same figures: those
of the authors' own code are in `diffusion/published/golden.json`, and the names and shapes of their
files in `layouts.json` beside it. No weights of anybody are in them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "diffusion" / "published"
LAYOUTS: dict[str, dict[str, list[int]]] = json.loads((FOLDER / "layouts.json").read_text())
GOLDEN: dict[str, dict[str, Any]] = json.loads((FOLDER / "golden.json").read_text())
SEED = 1
AVERAGED, RAW = "ema_model.averaged_model.", "model."
TEACHER, ENCODER = "recognition_model.backbone.", "label_mapping.backbone.backbone."
LAST_NORMS = ("bn3.weight", "res_layer.5.weight")
BETAS = np.linspace(1e-4, 0.02, 1000).astype(np.float32)


def draws(name: str, seed: int = SEED) -> np.random.Generator:
    """Return the generator of a name."""
    digest = hashlib.sha256(f"{name}:{seed}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def normals(name: str, shape: Iterable[int], seed: int = SEED) -> np.ndarray:
    """Return standard normals, float64."""
    return draws(name, seed).standard_normal(tuple(shape))


def filled(layout: Mapping[str, list[int]], seed: int = SEED) -> dict[str, Tensor]:
    """Return a state dict with the names and shapes of a layout."""
    return {name: _filled(name, shape, layout, seed) for name, shape in layout.items()}


def _filled(name: str, shape: list[int], layout: Mapping[str, list[int]], seed: int) -> Tensor:
    stem, _, last = name.rpartition(".")
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if not stem:
        return schedule()[name]
    n = normals(name, shape, seed)
    if last == "running_mean":
        value = 0.1 * n
    elif last == "running_var":
        value = 0.5 + np.abs(n)
    elif name.endswith("scaler.0"):
        value = 0.05 * (1 + 0.1 * n)
    elif "pos_emb" in name:
        value = 0.1 * n
    elif "channel_weight" in name:
        value = 0.5 + 0.1 * n
    elif name.endswith("quantize.embedding.weight"):
        value = n
    elif len(shape) > 1:
        value = n / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(LAST_NORMS):
        value = 0.3 * (1 + 0.1 * n)
    elif last == "weight":
        value = 1 + 0.1 * n if f"{stem}.bias" in layout else 0.25 + 0.05 * n
    else:
        value = 0.1 * n
    return torch.from_numpy(value.astype(np.float32))


def schedule() -> dict[str, Tensor]:
    """Return IDiff-Face's buffers."""
    betas = torch.from_numpy(BETAS)
    alphas = 1 - betas
    bars = alphas.log().cumsum(0).exp()
    return {
        "betas": betas,
        "alphas": alphas,
        "sigmas": betas.sqrt(),
        "sqrt_alphas_inv": 1 / alphas.sqrt(),
        "alpha_bars": bars,
        "sqrt_alpha_bars": bars.sqrt(),
        "sqrt_one_minus_alpha_bars": (1 - bars).sqrt(),
        "one_minus_alphas_over_sqrt_one_minus_alpha_bars": (1 - alphas) / (1 - bars).sqrt(),
    }


def dcface_layout(grid: int = 3, raw: bool = False) -> dict[str, list[int]]:
    """Return the layout of stage 2, without the parts that nothing generates with."""
    mapping = {**LAYOUTS["dcface"], "external_mapping.pos_emb_0.0": [1 + grid * grid, 512]}
    units = {AVERAGED: "adm", **({RAW: "adm"} if raw else {}), TEACHER: "ir_50", ENCODER: "ir_50"}
    for prefix, layout in units.items():
        mapping |= {prefix + name: shape for name, shape in LAYOUTS[layout].items()}
    return mapping


def normal(name: str, *shape: int, seed: int = SEED) -> Tensor:
    """Return an input of standard normals."""
    return torch.from_numpy(normals(f"input/{name}", shape, seed).astype(np.float32))


def context(seed: int = SEED) -> Tensor:
    """Return the unit context, float32 [1, 512]."""
    drawn = normals("input/context", (1, 512), seed)
    return torch.from_numpy((drawn / np.sqrt((drawn**2).sum())).astype(np.float32))


def picture(name: str, side: int, seed: int = SEED) -> np.ndarray:
    """Return an image of blocks and grain, uint8 [side, side, 3]."""
    source = draws(f"input/{name}", seed)
    blocks = source.integers(0, 256, (side // 16, side // 16, 3))
    grain = source.integers(0, 256, (side, side, 3))
    return ((3 * blocks.repeat(16, 0).repeat(16, 1) + grain) // 4).astype(np.uint8)


def pixels(name: str, side: int, seed: int = SEED) -> Tensor:
    """Return the image as float32 [1, 3, side, side] in -1 ... 1."""
    signed = ((picture(name, side, seed) / 255 - 0.5) / 0.5).astype(np.float32)
    return torch.from_numpy(signed).permute(2, 0, 1)[None].contiguous()


def apart(found: Tensor, figure: Mapping[str, Any]) -> float:
    """Return the largest absolute difference at the positions a figure lists."""
    assert list(found.shape) == figure["shape"], (found.shape, figure["shape"])
    flat = found.detach().contiguous().flatten().double()
    listed = flat[torch.tensor(figure["index"])].numpy()
    assert abs(float(flat.square().sum().sqrt()) / figure["l2"] - 1) < 1e-3
    return float(np.abs(listed - np.array(figure["value"])).max())
