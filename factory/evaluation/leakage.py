"""Leakage: how similar synthetic faces are to the real faces that their generator was trained on.

Similarity alone proves nothing, because any face has a near neighbour among enough people. Each
figure for training faces therefore has beside it the same figure for equally many held-out real
faces of equally many people, which the generator did not see.
"""

import base64
from collections.abc import Iterable
from typing import Any

import numpy as np
import simplejpeg

from factory.datasets.store import Store
from factory.evaluation.dataset import Embedded, StoredSample, embed_dataset, finished, samples
from factory.evaluation.quality import Radius, centres
from factory.evaluation.scores import histogram, rows_of
from factory.evaluation.tables import Table, percent
from factory.recipe import InputError
from factory.recognition.images import NamedEmbedder, decode, fitted
from factory.recognition.neighbours import Faces
from factory.seeding import generator, seed64

IMAGES = 10_000  # most synthetic images to look up; they are drawn if there are more
MATCHED = 50_000  # most real images of each matched set
CLOSEST = 12  # number of pairs that a report shows
REPLICATES = 1000
LEVEL = 0.95
PERCENTILES = (50, 95, 99)
ASKED = ("identities", "images")
AMONG = ("training", "training_matched", "held_out")
THUMB = 96  # largest side of a shown face in pixels

DEFINITIONS = {
    "nearest": "cosine of a synthetic face to the nearest of a set of real faces",
    "identities": "nearest, for the centre of every synthetic identity: its mean unit embedding",
    "images": f"nearest, for every synthetic image, or {IMAGES} drawn uniformly with the seed",
    "training": "among all training images",
    "training_matched, held_out": "among equal numbers of images of equal numbers of people, drawn "
    "uniformly with the seed: people first, then images of theirs in rounds, one of everybody who "
    f"has one left; {MATCHED} images at most",
    "above_r": "share whose nearest reaches r, the recognizer's threshold",
    "membership": "AUC of the cosine of a real image to its nearest synthetic image, training_"
    "matched images against held_out images: the chance that a training image is nearer than a "
    "held-out one, ties half; 0.5 is none",
    "low, high": f"{LEVEL:.0%} percentile interval over {REPLICATES} bootstrap replicates, which "
    "draw people of either set with replacement",
    "recognizer": "one that was trained on neither set of real faces; else its own memory of them "
    "is measured, too",
}


def leakage(
    synthetic: Embedded,
    training: Embedded,
    held_out: Embedded | None,
    radius: Radius,
    seed: int = 0,
    images: int = IMAGES,
    tasks: int = 0,
) -> dict[str, Any]:
    """Return a dataset's similarity to real faces, as a JSON-able mapping with definitions.

    Args:
        synthetic: the dataset.
        training: the training data of its generator, under the same recognizer.
        held_out: real faces that the generator did not see; without them there is no membership
            figure.
        radius: the recognizer's radius.
        seed: root seed of all draws.
        images: number of synthetic images to look up among training images.
        tasks: number of Ray tasks that share a search; 0 for none.

    Raises:
        InputError: the sets have embeddings of different dimensions, or a set has one person only.
    """
    for name, real in (("training", training), ("held-out", held_out)):
        if real is not None and real.unit.shape[1] != synthetic.unit.shape[1]:
            raise InputError(
                f"{name} faces: dimension {real.unit.shape[1]}, accepted is the dataset's "
                f"{synthetic.unit.shape[1]}"
            )
    drawn = _some(len(synthetic.labels), images, seed, "leakage-images")
    asked = {
        "identities": centres(synthetic.unit, rows_of(synthetic.labels)).astype(np.float32),
        "images": synthetic.unit[drawn],
    }
    whole = Faces(training.unit)
    nearest = {name: whole.nearest(queries, tasks=tasks) for name, queries in asked.items()}
    found: dict[str, Any] = {
        name: {"count": len(asked[name]), "training": _summary(one.cosines[:, 0], radius.r)}
        for name, one in nearest.items()
    }
    if held_out is not None:
        matched, unseen = matched_rows(training, held_out, seed)
        sets = {"training_matched": training.unit[matched], "held_out": held_out.unit[unseen]}
        for name, queries in asked.items():
            for which, unit in sets.items():
                cosines = Faces(unit).nearest(queries, tasks=tasks).cosines[:, 0]
                found[name][which] = _summary(cosines, radius.r)
        made = Faces(synthetic.unit)
        near = {which: made.nearest(unit, tasks=tasks) for which, unit in sets.items()}
        found["membership"] = membership(
            (near["training_matched"].cosines[:, 0], training.labels[matched]),
            (near["held_out"].cosines[:, 0], held_out.labels[unseen]),
            seed,
        )
    rows, cosines = nearest["images"].rows[:, 0], nearest["images"].cosines[:, 0]
    return {
        **found,
        "closest": _closest(synthetic, training, drawn, rows, cosines),
        "training_images": len(training.labels),
        "r": radius.r,
        "r_fpr": radius.fpr,
        "seed": seed,
        "definitions": DEFINITIONS,
    }


def real_datasets(store: Store, against: str, held_out: str = "") -> list[Store]:
    """Check and return the datasets of real faces that a leakage needs.

    Args:
        store: the synthetic dataset.
        against: folder or URL of the training data, a dataset; "" for no leakage.
        held_out: folder or URL of held-out real faces, a dataset; "" for none.

    Raises:
        InputError: held-out faces are given without training data, a dataset is missing, or one
            dataset is given twice.
    """
    if not against and held_out:
        raise InputError("--held-out: this goes with --against, which is missing")
    real = [finished(url) for url in (against, held_out) if url]
    given = [store.url, *(one.url for one in real)]
    if len(set(given)) < len(given):
        raise InputError(f"faces: {', '.join(given)}: one dataset stands twice; they must differ")
    return real


def of_datasets(
    store: Store,
    synthetic: Embedded,
    recognizer: NamedEmbedder,
    radius: Radius,
    real: list[Store],
    resize: bool = False,
    tasks: int = 0,
) -> dict[str, Any]:
    """Return the leakage of a dataset with the faces of its closest pairs.

    Args:
        store: the dataset.
        synthetic: the dataset's embeddings under the recognizer.
        recognizer: embeds the real faces.
        radius: the recognizer's radius.
        real: the training data and, if given, held-out faces (`real_datasets`).
        resize: whether to resize real images of another size.
        tasks: number of Ray tasks that share a search; 0 for none.

    Raises:
        InputError: as `leakage` and `embed_dataset`.
    """
    embedded = [embed_dataset(one, recognizer, resize=resize) for one in real]
    unseen = embedded[1] if len(embedded) > 1 else None
    found = leakage(synthetic, embedded[0], unseen, radius, tasks=tasks)
    pairs = show_pairs(found["closest"], samples(store), samples(real[0]))
    return {**found, "datasets": [one.url for one in real], "closest": pairs}


def matched_rows(
    first: Embedded, second: Embedded, seed: int, most: int = MATCHED
) -> tuple[np.ndarray, np.ndarray]:
    """Draw equal numbers of images of equal numbers of people; return the rows of each set.

    Both results are int64 [n], where n is as large as the sets allow, up to `most`. Images are
    taken in rounds, one of each person who has one left, so that every drawn person has an image.

    Raises:
        InputError: a set has fewer than two people.
    """
    both = (("leakage-training", first.labels), ("leakage-held-out", second.labels))
    people = min(most, *(len(np.unique(labels)) for _, labels in both))
    if people < 2:
        raise InputError("training or held-out faces: one person; accepted are two or more")
    chosen = []
    for stage, labels in both:
        names = np.unique(labels)
        taken = names[_some(len(names), people, seed, stage)]
        chosen.append(np.flatnonzero(np.isin(labels, taken)))
    count = min(most, *map(len, chosen))
    drawn = [
        np.sort(rows[_rounds(labels[rows], seed, f"{stage}-images")[:count]])
        for (stage, labels), rows in zip(both, chosen, strict=True)
    ]
    return drawn[0], drawn[1]


def membership(
    members: tuple[np.ndarray, np.ndarray],
    others: tuple[np.ndarray, np.ndarray],
    seed: int,
    replicates: int = REPLICATES,
) -> dict[str, Any]:
    """Return the AUC of members' scores against others', with a bootstrap interval over people.

    Args:
        members: scores, float [n], and labels, int [n], of images of the training data.
        others: scores and labels of images outside of it.
        seed: root seed of the bootstrap.
        replicates: how many times people are drawn with replacement.
    """
    scores = np.concatenate([members[0], others[0]])
    _, rank = np.unique(scores, return_inverse=True)
    group = [np.unique(labels, return_inverse=True)[1] for _, labels in (members, others)]
    people = [int(one.max()) + 1 for one in group]
    split = len(members[0])

    def auc(weights: tuple[np.ndarray, np.ndarray]) -> float:
        ranks = int(rank.max()) + 1
        up = np.bincount(rank[:split], weights[0][group[0]], ranks)
        down = np.bincount(rank[split:], weights[1][group[1]], ranks)
        below = np.cumsum(down) - down
        return float((up * (below + down / 2)).sum() / (up.sum() * down.sum()))

    drawn = []
    for replicate in range(replicates):
        draw = generator(seed64(seed, "membership", replicate))
        first, second = (
            np.bincount(draw.integers(n, size=n), minlength=n).astype(float) for n in people
        )
        drawn.append(auc((first, second)))
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return {
        "auc": auc((np.ones(people[0]), np.ones(people[1]))),
        "low": float(low),
        "high": float(high),
        "images_each": split,
        "people_each": people[0],
    }


def tables(found: dict[str, Any]) -> list[Table]:
    """Return a leakage as tables to print."""
    nearest = Table(
        "Nearest real face", ("of", "among", "median", "p95", "p99", "highest", "at r or above, %")
    )
    for name in ASKED:
        for which in AMONG:
            if which in found[name]:
                one = found[name][which]
                figures = [f"{one[key]:.3f}" for key in ("p50", "p95", "p99", "highest")]
                asked = f"{found[name]['count']} {name}"
                nearest.rows.append((asked, which, *figures, percent(one["above_r"])))
    if "membership" not in found:
        return [nearest]
    one = found["membership"]
    if one["low"] <= 0.5 <= one["high"]:
        says = "not told from none"
    else:
        says = "training faces are nearer" if one["auc"] > 0.5 else "held-out faces are nearer"
    member = Table(
        "Membership (0.5 is none)",
        ("AUC", "95 % interval", "images of each set", "people of each set", "says"),
        [
            (
                f"{one['auc']:.3f}",
                f"{one['low']:.3f} to {one['high']:.3f}",
                str(one["images_each"]),
                str(one["people_each"]),
                says,
            )
        ],
    )
    return [nearest, member]


def metrics(found: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a leakage for MLflow."""
    kept = {
        f"leakage/{name}/{which}/{key}": found[name][which][key]
        for name in ASKED
        for which in AMONG
        if which in found[name]
        for key in ("p50", "p99", "highest", "above_r")
    }
    for key in ("auc", "low", "high") if "membership" in found else ():
        kept[f"leakage/membership/{key}"] = found["membership"][key]
    return kept


def show_pairs(
    closest: list[dict[str, Any]],
    synthetic: Iterable[StoredSample],
    training: Iterable[StoredSample],
) -> list[dict[str, Any]]:
    """Return the closest pairs with their faces: synthetic on the left, real on the right.

    Args:
        closest: the entry `closest` of a leakage.
        synthetic: the samples of the dataset; they are read until all faces are found.
        training: the samples of the training data.

    Returns:
        The same entries, each with `uri` (a JPEG data URI), `width` and `height` in pixels.
    """
    left = _faces(synthetic, {pair["synthetic"] for pair in closest})
    right = _faces(training, {pair["training"] for pair in closest})
    shown = []
    for pair in closest:
        faces = left[pair["synthetic"]], right[pair["training"]]
        size = min(*(face.shape[0] for face in faces), THUMB)
        canvas = np.concatenate([fitted(face, size, "", resize=True) for face in faces], axis=1)
        data = simplejpeg.encode_jpeg(canvas, 92, colorspace="RGB", colorsubsampling="444")
        uri = "data:image/jpeg;base64," + base64.b64encode(data).decode()
        shown.append({**pair, "uri": uri, "width": 2 * size, "height": size})
    return shown


def _some(count: int, wanted: int, seed: int, stage: str) -> np.ndarray:
    """Draw `wanted` of `count` rows without replacement, in rising order; all if fewer exist."""
    if count <= wanted:
        return np.arange(count)
    draw = generator(seed64(seed, stage))
    return np.sort(draw.choice(count, size=wanted, replace=False, shuffle=False))


def _rounds(labels: np.ndarray, seed: int, stage: str) -> np.ndarray:
    """Order rows at random, but with all n-th images of people before any (n+1)-th image."""
    drawn = generator(seed64(seed, stage)).permutation(len(labels))
    by_person = drawn[np.argsort(labels[drawn], kind="stable")]
    _, start, counts = np.unique(labels[by_person], return_index=True, return_counts=True)
    turn = np.empty(len(labels), np.int64)
    turn[by_person] = np.arange(len(labels)) - np.repeat(start, counts)
    return drawn[np.argsort(turn[drawn], kind="stable")]


def _summary(cosines: np.ndarray, r: float) -> dict[str, Any]:
    return {
        "mean": float(cosines.mean()),
        "sd": float(cosines.std()),
        **{f"p{p}": float(np.percentile(cosines, p)) for p in PERCENTILES},
        "highest": float(cosines.max()),
        "above_r": float((cosines >= r).mean()),
        "histogram": histogram(cosines),
    }


def _closest(
    synthetic: Embedded,
    training: Embedded,
    drawn: np.ndarray,
    rows: np.ndarray,
    cosines: np.ndarray,
) -> list[dict[str, Any]]:
    """Return the nearest pairs, nearest first, at most one for each synthetic identity."""
    pairs: list[dict[str, Any]] = []
    seen: set[int] = set()
    for place in np.argsort(-cosines, kind="stable"):
        label = int(synthetic.labels[drawn[place]])
        if label not in seen and len(pairs) < CLOSEST:
            seen.add(label)
            pairs.append(
                {
                    "cosine": float(cosines[place]),
                    "synthetic": synthetic.keys[drawn[place]],
                    "synthetic_label": label,
                    "training": training.keys[rows[place]],
                    "training_label": int(training.labels[rows[place]]),
                }
            )
    return pairs


def _faces(samples: Iterable[StoredSample], keys: set[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for sample in samples:
        if sample.key in keys:
            found[sample.key] = decode(sample.encoded, sample.key)
            if len(found) == len(keys):
                break
    return found
