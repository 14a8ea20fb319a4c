"""The quality of a labelled dataset under one recognizer: separation together with spread.

A dataset that repeats one image of each identity separates perfectly, so separation is always
stated with spread. Uniqueness and consistency follow DCFace (its equations 11 to 13; docs/papers.md
0.4); their radius r is a cosine that belongs to the recognizer.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from factory.datasets.centres import centre_cosines
from factory.evaluation.curves import det_curve
from factory.evaluation.dataset import Embedded
from factory.evaluation.scores import (
    DEFINITIONS,
    genuine_scores,
    histogram,
    impostor_scores,
    rates,
    rows_of,
    threshold_at,
)
from factory.recipe import InputError
from factory.recognition.faces import save_faces
from factory.recognition.images import NamedEmbedder, normalized
from factory.recognition.neighbours import packed
from factory.seeding import seed64
from factory.studio.people import person
from factory.studio.render import render
from factory.studio.views import draw_view

GALLERY_PEOPLE = 460  # 105,570 impostor pairs, enough to resolve FPR 1e-4
RADIUS_FPR = 1e-4
GALLERY_SEED = 4
SHOWN = (  # entries of `measure` that tables show
    *("identities", "images", "eer", "fmr100", "fmr1000", "fdr", "genuine_mean", "impostor_mean"),
    *("spread", "uniqueness", "consistency", "r", "r_fpr"),
)

QUALITY_DEFINITIONS = {
    **DEFINITIONS,
    "curve": "lowest FNMR at an FMR (DET); the true accept rate of a ROC curve is 1 - FNMR",
    "spread": "mean over images of 1 - cosine to the leave-one-out centre: the mean embedding of "
    "the identity's other images",
    "uniqueness": "share of identities kept when centres are walked in label order and one is kept "
    "if its cosine to every earlier kept centre is below r",
    "consistency": "mean over identities of the share of images whose cosine to their centre "
    "exceeds r",
    "r": "the recognizer's cosine threshold at FPR 1e-4, or the smallest resolved, on one ordinary "
    "image each of studio people of the split gallery",
}


@dataclass(frozen=True)
class Radius:
    """The cosine above which a recognizer takes two images for one person.

    Attributes:
        r: the cosine.
        fpr: the false positive rate at this cosine.
        pairs: number of impostor pairs of the measurement; 0 if the user stated the cosine.
    """

    r: float
    fpr: float
    pairs: int


def gallery_radius(recognizer: NamedEmbedder, people: int = GALLERY_PEOPLE) -> Radius:
    """Measure a recognizer's radius on impostor pairs of the studio's gallery.

    Args:
        recognizer: the recognizer to measure; images are rendered at its size.
        people: number of people, with one image each.
    """
    embeddings = normalized(recognizer.embed(portraits(people, recognizer.size)).astype(np.float64))
    impostor, _ = impostor_scores(embeddings, np.arange(people), seed=GALLERY_SEED)
    r, fpr = threshold_at(impostor, RADIUS_FPR)
    return Radius(r, fpr, len(impostor))


def measure(embedded: Embedded, radius: Radius, seed: int = 0, tasks: int = 0) -> dict[str, Any]:
    """Return the quality of a dataset as a JSON-able mapping, definitions included.

    Args:
        embedded: the dataset under one recognizer.
        radius: that recognizer's radius.
        seed: root seed of the samples of pairs, which are drawn if there are too many.
        tasks: number of Ray tasks that share the packing of centres; 0 for none.

    Raises:
        InputError: there are fewer than two identities, or no identity has two images.
    """
    labels = embedded.labels
    rows = rows_of(labels)
    largest = max(len(row) for row in rows)
    if len(rows) < 2 or largest < 2:
        raise InputError(
            f"dataset: {len(rows)} identities of {largest} images at most; a measurement needs two "
            "identities, and two images of one of them"
        )
    genuine, genuine_choice = genuine_scores(embedded.unit, labels, seed)
    impostor, impostor_choice = impostor_scores(embedded.unit, labels, seed)
    unit_centres = centres(embedded.unit, rows)
    return {
        "identities": len(rows),
        "images": len(labels),
        **asdict(rates(genuine, impostor)),
        "spread": spread(embedded.unit, labels),
        "uniqueness": uniqueness(unit_centres, radius.r, tasks),
        "consistency": consistency(embedded.unit, rows, unit_centres, radius.r),
        "r": radius.r,
        "r_fpr": radius.fpr,
        "r_pairs": radius.pairs,
        "genuine_choice": genuine_choice,
        "impostor_choice": impostor_choice,
        "histograms": {"genuine": histogram(genuine), "impostor": histogram(impostor)},
        "curve": det_curve(genuine, impostor),
        "definitions": QUALITY_DEFINITIONS,
    }


def centres(unit: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    """Return the mean embedding of each identity, scaled to length 1, float64 [C, D]."""
    return normalized(np.stack([unit[row].mean(axis=0, dtype=np.float64) for row in rows]))


def write_faces(
    embedded: Embedded, recognizer_sha256: str, images: str = "", people: str = ""
) -> Iterator[str]:
    """Write a dataset's embeddings, identities' centres, or both; yield a line for each file.

    Args:
        embedded: the dataset under one recognizer.
        recognizer_sha256: sha256 of that recognizer's weights, which the files state.
        images: file for the unit embeddings, float32 [N, D]; "" for none.
        people: file for the unit centres, float32 [C, D], in the order of labels; "" for none.
    """
    if images:
        sha256 = save_faces(images, embedded.unit, recognizer_sha256)
        yield f"{images}: {len(embedded.unit)} embeddings, sha256 {sha256}"
    if people:
        found = centres(embedded.unit, rows_of(embedded.labels))
        sha256 = save_faces(people, found, recognizer_sha256)
        yield f"{people}: {len(found)} centres, sha256 {sha256}"


def spread(unit: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cosine distance to the leave-one-out centre, in [0, 2].

    Identities of one image have no such centre and do not count. A centre of length 0 has distance
    1 to everything.
    """
    _, group, counts = np.unique(labels, return_inverse=True, return_counts=True)
    cosines = centre_cosines(unit, labels)[counts[group] > 1]
    return float(1.0 - np.nan_to_num(cosines).mean())


def uniqueness(unit_centres: np.ndarray, r: float, tasks: int = 0) -> float:
    """Return U_class, in (0, 1]: greedy packing of unit centres [C, D] at cosine r.

    DCFace's printed equation compares with all earlier centres, its text with the kept ones. This
    follows the text.
    """
    return float(packed(unit_centres, r, tasks=tasks).mean())


def consistency(
    unit: np.ndarray, rows: list[np.ndarray], unit_centres: np.ndarray, r: float
) -> float:
    """Return C_intra, in [0, 1] (DCFace, Eq. 13): the mean share of images near their centre."""
    shares = [
        np.mean(unit[row] @ centre > r) for row, centre in zip(rows, unit_centres, strict=True)
    ]
    return float(np.mean(shares))


@lru_cache(maxsize=2)
def portraits(people: int, size: int) -> np.ndarray:
    """Return an ordinary image of each of the first gallery people, uint8 [people, S, S, 3]."""
    views = (draw_view(seed64(GALLERY_SEED, "gallery-portrait", index)) for index in range(people))
    return np.stack([render(person("gallery", n), view, size) for n, view in enumerate(views)])
