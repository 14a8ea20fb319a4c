"""Coverage: the poses, lights, ages and other attributes of a dataset, compared with real faces.

One predictor (`factory.recognition.attributes`) reads the attributes of both sides, so that its
errors are the same on both.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factory.datasets.store import Store
from factory.evaluation.dataset import image_batches
from factory.evaluation.tables import Table
from factory.recognition.attributes import BATCH, Predictor

COVERAGE_DEFINITIONS = {
    "histogram": "of the predicted values in equal bins from low to high; values outside count in "
    "the nearest bin",
    "reference": "the same histogram of real faces under the same predictor: of --real where "
    "given, else of the people held out when the predictor was trained",
    "overlap": "sum over bins of the lesser of both shares: 1 where the distributions agree, 0 "
    "where they share no bin",
    "distance": "Wasserstein-1 distance of the two histograms, in the attribute's unit",
    "held_out_error": "mean absolute error of the predictor on people it had not seen",
    "left_out": "attributes that the predictor reads no better than the median does",
    "true_error": "mean absolute error on this dataset, where its sidecars state the truth",
}


@dataclass
class Predicted:
    """Attributes of a dataset, float32 [N] by name, and the truth if all sidecars state it."""

    values: dict[str, np.ndarray]
    truth: dict[str, np.ndarray] = field(default_factory=dict)


def predict_dataset(
    store: Store,
    predictor: Predictor,
    identities: int | None = None,
    images_each: int | None = None,
    resize: bool = False,
) -> Predicted:
    """Read the attributes of a dataset's images, in order; images are streamed.

    Raises:
        InputError: as `image_batches`.
    """
    names, some = list(predictor.attributes), (identities, images_each, resize)
    parts: list[dict[str, np.ndarray]] = []
    stated: list[list[float | None]] = []
    for found, images in image_batches(store, predictor.size, BATCH, *some):
        parts.append(predictor.predict(images))
        truths = (sample.sidecar.get("truth") or {} for sample in found)
        stated += [[truth.get(name) for name in names] for truth in truths]
    columns = zip(names, zip(*stated, strict=True), strict=True)
    return Predicted(
        {name: np.concatenate([part[name] for part in parts]) for name in names},
        {name: np.array(column) for name, column in columns if None not in column},
    )


def measure_coverage(
    found: Predicted, predictor: Predictor, real: Predicted | None = None, beside: str = ""
) -> dict[str, Any]:
    """Return the figures of `COVERAGE_DEFINITIONS` as a JSON-able mapping.

    Args:
        found: the dataset's attributes.
        predictor: the predictor that read them.
        real: attributes of real images; None takes the predictor's own reference.
        beside: a name for the real images.
    """
    attributes = {}
    for name, meaning in predictor.attributes.items():
        if name in predictor.unread:
            continue
        values = found.values[name]
        counts = meaning.histogram(values)
        reference = meaning.histogram(real.values[name]) if real else predictor.reference.get(name)
        entry = {
            "unit": meaning.unit,
            "low": meaning.low,
            "high": meaning.high,
            "mean": float(values.mean()),
            "sd": float(values.std()),
            "histogram": counts,
            "reference": reference,
            "held_out_error": predictor.error.get(name),
            "true_error": None,
            "overlap": None,
            "distance": None,
        }
        if name in found.truth:
            entry["true_error"] = float(np.abs(values - found.truth[name]).mean())
        if reference:
            width = (meaning.high - meaning.low) / len(counts)
            entry["overlap"] = overlap(counts, reference)
            entry["distance"] = distance(counts, reference, width)
        attributes[name] = entry
    return {
        "predictor": {
            "name": predictor.name, "sha256": predictor.sha256, "licence": predictor.licence,
        },
        "images": len(next(iter(found.values.values()))),
        "beside": beside if real else "people held out when the predictor was trained",
        "attributes": attributes,
        "left_out": list(predictor.unread),
        "definitions": COVERAGE_DEFINITIONS,
    }  # fmt: skip


def overlap(first: list[int], second: list[int]) -> float:
    """Return the share that two histograms of equal bins have in common, in [0, 1]."""
    return float(np.minimum(_shares(first), _shares(second)).sum())


def distance(first: list[int], second: list[int], width: float) -> float:
    """Return the Wasserstein-1 distance of two histograms whose bins are `width` wide."""
    return float(width * np.abs(np.cumsum(_shares(first) - _shares(second))).sum())


def coverage_table(found: dict[str, Any]) -> Table:
    """Return the figures as a table with a row for each attribute."""
    columns = ("attribute", "mean", "sd", "overlap", "distance", "held-out error", "unit")
    table = Table(f"Coverage, beside {found['beside']}", columns)
    for name, one in found["attributes"].items():
        numbers = (one[key] for key in ("mean", "sd", "overlap", "distance", "held_out_error"))
        cells = ("-" if number is None else f"{number:.3g}" for number in numbers)
        table.rows.append((name, *cells, re.split("[,:]", one["unit"])[0]))
    return table


def _shares(counts: list[int]) -> np.ndarray:
    return np.asarray(counts, dtype=np.float64) / max(sum(counts), 1)
