"""Training of the attribute predictor on a dataset of the studio, whose sidecars state the truth.

It runs in one process and takes some minutes on a CPU. The network is small, so Ray is not needed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from factory.cluster import hardware
from factory.datasets.claim import Claim
from factory.datasets.licences import strictest
from factory.datasets.manifest import load_manifest
from factory.datasets.scratch import scratch
from factory.datasets.store import Store
from factory.evaluation.dataset import samples
from factory.recipe import InputError
from factory.recognition.attributes import (
    FILE,
    STUDIO,
    AttributeNet,
    load_predictor,
    save_predictor,
)
from factory.recognition.backbones import channels_last
from factory.recognition.images import decode
from factory.recognition.recognizer import to_input
from factory.seeding import generator, seed64

HELD_OUT = 16  # one identity in so many is held out
BATCH = 128
PEAK, DECAY = 3e-3, 1e-2
ATTRIBUTES = Claim("recipe.json", "the predictor")
BLURRED = 0.3  # share of images shown at half the resolution


@dataclass(frozen=True)
class Truth:
    """A labelled set of N images.

    Attributes:
        images: uint8 [N, S, S, 3].
        values: attributes in their units, float32 [N, K].
        labels: identities, int64 [N].
    """

    images: np.ndarray
    values: np.ndarray
    labels: np.ndarray

    def part(self, rows: np.ndarray) -> "Truth":
        """Return the images of some rows."""
        return Truth(self.images[rows], self.values[rows], self.labels[rows])


def read_truth(store: Store, identities: int | None = None) -> Truth:
    """Read a dataset with the truth of its sidecars into memory.

    Raises:
        InputError: a sidecar states no truth, or not every attribute.
    """
    images, values, labels = [], [], []
    for sample in samples(store, identities):
        truth = sample.sidecar.get("truth") or {}
        missing = [name for name in STUDIO if name not in truth]
        if missing:
            raise InputError(
                f"dataset {store.url} sample {sample.key}: no truth for {missing[0]}; accepted is "
                "a dataset of the system studio"
            )
        images.append(decode(sample.encoded, sample.key))
        values.append([truth[name] for name in STUDIO])
        labels.append(sample.label)
    return Truth(np.stack(images), np.array(values, np.float32), np.array(labels))


@dataclass(frozen=True)
class Training:
    """A training whose input and output have been checked.

    Attributes:
        claim: what the output folder says it is for.
        train: the images to learn from.
        test: the images of the people who are held out.
        target: the output folder.
    """

    claim: dict[str, Any]
    train: Truth
    test: Truth
    target: Store


def plan(
    url: str, out: str | Path, epochs: int, seed: int, licence: str, identities: int | None = None
) -> Training:
    """Read and check what a training learns from, and where it writes; writes nothing.

    Args:
        url: a dataset of the studio; every sixteenth identity is held out.
        out: folder of `attributes.safetensors` and `recipe.json`.
        epochs: passes over the other identities.
        seed: root seed of weights, order and augmentation.
        licence: licence of the new weights; the dataset's replaces it if that is stricter.
        identities: use only labels below this.

    Raises:
        InputError: there are too few identities or images, a sidecar states no truth, or the folder
            holds something else or a predictor of other settings.
    """
    store, made, target = Store(url), load_manifest(Store(url)), Store(out)
    claim = {
        "kind": "attributes",
        "train": made.content_digest,
        "epochs": epochs,
        "seed": seed,
        "licence": strictest([licence, made.licence]),
        "identities": identities,
    }
    found = ATTRIBUTES.read(target)
    if found is not None:  # a finished one's has the figures as well
        differing = ATTRIBUTES.differing({name: found.get(name) for name in claim}, claim)
        if differing:
            raise ATTRIBUTES.another(target, differing)
    truth = read_truth(store, identities)
    held = truth.labels % HELD_OUT == HELD_OUT - 1
    if held.all() or not held.any():
        raise InputError(f"dataset {url}: too few identities; accepted are {HELD_OUT} or more")
    train, test = truth.part(np.flatnonzero(~held)), truth.part(np.flatnonzero(held))
    if len(train.labels) < BATCH:
        raise InputError(
            f"dataset {url}: {len(train.labels)} images of people who are not held out; accepted "
            f"are {BATCH} or more"
        )
    return Training(claim, train, test, target)


def train_attributes(training: Training, say: Callable[[str], None]) -> dict[str, Any]:
    """Train a predictor, measure it on held-out people and write it with its record.

    Args:
        training: what `plan` returned; the caller holds the lock of its target.
        say: is called with a line for each epoch.

    Returns:
        The record: among others the mean absolute error of each attribute on the held-out people,
        and the error of a constant answer, the training median.
    """
    train, test, target = training.train, training.test, training.target
    if not target.exists(FILE):
        ATTRIBUTES.write(target, training.claim)
    mean, scale = train.values.mean(axis=0), train.values.std(axis=0)
    size = train.images.shape[1]
    epochs, seed = training.claim["epochs"], training.claim["seed"]
    net = _fit(train, mean, scale, size, epochs, seed, say)
    with scratch() as folder:
        save_predictor(folder / FILE, net, size, mean, scale)
        predicted = load_predictor(str(folder / FILE)).predict(test.images)
    median = np.median(train.values, axis=0)
    error, baseline, reference = {}, {}, {}
    for column, name in enumerate(STUDIO):
        known = test.values[:, column]
        error[name] = float(np.abs(predicted[name] - known).mean())
        baseline[name] = float(np.abs(median[column] - known).mean())
        reference[name] = STUDIO[name].histogram(predicted[name])
    record = {
        **training.claim,
        "images": len(train.labels),
        "held_out_images": len(test.labels),
        "error": error,
        "error_of_the_median": baseline,
    }
    with scratch() as folder:
        save_predictor(folder / FILE, net, size, mean, scale, reference=reference, **record)
        target.put(folder / FILE, FILE)
    target.write(ATTRIBUTES.file, (json.dumps(record, indent=1) + "\n").encode())
    return record


def _fit(
    train: Truth,
    mean: np.ndarray,
    scale: np.ndarray,
    size: int,
    epochs: int,
    seed: int,
    say: Callable[[str], None],
) -> AttributeNet:
    torch.manual_seed(seed64(seed, "attributes-weights") % 2**32)
    net = AttributeNet(size, len(STUDIO))
    channels_last(net)
    optimizer = torch.optim.AdamW(net.parameters(), PEAK, weight_decay=DECAY)
    each = len(train.labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, epochs * each, pct_start=0.15)
    values = (train.values - mean) / scale
    # A mirror changes the sign of a value in its unit, not of its deviation from the mean.
    sign = np.array([attribute.mirrored for attribute in STUDIO.values()], np.float32)
    mirrored = (train.values * sign - mean) / scale
    low = hardware.processor(gpu=False).bfloat16
    for epoch in range(epochs):
        rng = generator(seed64(seed, "attributes-epoch", epoch))
        order, total = rng.permutation(len(train.labels)), 0.0
        for step in range(each):
            rows = order[step * BATCH : (step + 1) * BATCH]
            flip, blur = rng.random(len(rows)) < 0.5, rng.random(len(rows)) < BLURRED
            batch = _augmented(to_input(torch.from_numpy(train.images[rows])), flip, blur)
            target = torch.from_numpy(np.where(flip[:, None], mirrored[rows], values[rows]))
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                answer = net(batch)
            loss = functional.smooth_l1_loss(answer.float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        say(f"epoch {epoch + 1} of {epochs}: loss {total / each:.4f}")
    return net.eval()


def _augmented(batch: Tensor, flip: np.ndarray, blur: np.ndarray) -> Tensor:
    mirror, half = torch.from_numpy(flip), torch.from_numpy(blur)
    batch[mirror] = batch[mirror].flip(3)
    coarse = functional.avg_pool2d(batch[half], 2)
    batch[half] = functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    return batch.contiguous(memory_format=torch.channels_last)
