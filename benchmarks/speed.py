"""Measure what training by recipe costs, against a plain PyTorch loop of the same model."""

import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from factory.datasets.feed import Feed
from factory.datasets.store import Store
from factory.recipe import FRRecipe
from factory.recognition.backbones import channels_last, make_backbone
from factory.recognition.margins import Margin
from factory.recognition.recognizer import to_input
from factory.training.augment import augment
from factory.training.engines import make_optimizer
from factory.training.recognition import run

WARM = 10  # steps before the clock starts
HELD = 20  # batches that the plain loop keeps in memory
NEVER = 10**9


def compare(recipe: FRRecipe, repeats: int, steps: int = 60) -> dict[str, Any]:
    """Time the three loops in turn, `repeats` times; print each round and return the medians.

    Returns:
        images/s of the factory's loop, of the plain loop and of the plain loop in float32 and
        contiguous layout; and the first divided by each of the others (`ratio`, `fp32_ratio`).
    """
    found: dict[str, list[float]] = {}
    for number in range(repeats):
        made = by_recipe(recipe, steps)
        plain, fp32 = plainly(recipe, steps), plainly(recipe, steps, fp32_contiguous=True)
        row = {"images_per_second": made, "plain": plain, "fp32_contiguous": fp32}
        row |= {"ratio": made / plain, "fp32_ratio": made / fp32}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in row.items())
        print(f"round {number + 1}: {shown}", flush=True)
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
    return {"recipe": recipe.name, **medians}


def by_recipe(recipe: FRRecipe, steps: int) -> float:
    """Return images/s of the factory's loop: reading, decoding, augmenting, training, noting.

    Args:
        recipe: what to train.
        steps: number of timed steps, at most 190, so that each has its row in the curve.
    """
    rare = recipe.checkpoint.model_copy(update={"every_steps": NEVER})
    schedule = recipe.schedule.model_copy(update={"steps": WARM + steps, "epochs": None})
    with tempfile.TemporaryDirectory() as folder:
        asked = recipe.model_copy(update={"checkpoint": rare, "schedule": schedule})
        curve = run(asked, Store(folder))["curve"]
    return steps * recipe.schedule.batch_size / (curve[-1]["seconds"] - curve[WARM - 1]["seconds"])


def plainly(recipe: FRRecipe, steps: int, fp32_contiguous: bool = False) -> float:
    """Return images/s of a plain loop, which keeps decoded images in memory and saves nothing.

    Args:
        recipe: names model, head, optimizer, augmentations and batch size.
        steps: number of timed steps.
        fp32_contiguous: train in float32 and contiguous layout, PyTorch's defaults, instead of
            bfloat16 and channels last.
    """
    torch.set_num_threads(recipe.engine.threads)
    images, labels, classes = _in_memory(recipe)
    backbone = make_backbone(recipe.backbone, recipe.image.size).train()
    if not fp32_contiguous:
        channels_last(backbone)
    centres = nn.Parameter(0.01 * torch.randn(classes, recipe.backbone.embedding_size))
    margin = Margin(recipe.head)
    parameters = [*[p for p in backbone.parameters() if p.requires_grad], centres]
    optimizer = make_optimizer(recipe.optimizer, parameters)
    low = recipe.engine.precision == "bfloat16" and not fp32_contiguous
    size, began = recipe.schedule.batch_size, 0.0
    for step in range(WARM + steps):
        if step == WARM:
            began = time.perf_counter()
        taken = slice(step % HELD * size, (step % HELD + 1) * size)
        x, y = to_input(torch.from_numpy(images[taken])), torch.from_numpy(labels[taken])
        x = augment(x, recipe.augment, recipe.seed, step, slice(0, size), size)
        if fp32_contiguous:
            x = x.contiguous()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            embeddings = backbone(x)
        loss = nn.functional.cross_entropy(margin(embeddings, centres, y), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(parameters, recipe.optimizer.clip_norm)
        optimizer.step()
        loss.item()
    return steps * size / (time.perf_counter() - began)


def _in_memory(recipe: FRRecipe) -> tuple[np.ndarray, np.ndarray, int]:
    data, size = recipe.data, recipe.schedule.batch_size
    feed = Feed(
        data.urls(), size, recipe.seed, recipe.image.size, data.identities, data.images_each,
        resize=data.resize,
    )  # fmt: skip
    batches = list(feed.batches(0, HELD))
    feed.close()
    images = np.concatenate([batch.images for batch in batches])
    return images, np.concatenate([batch.labels for batch in batches]), feed.classes
