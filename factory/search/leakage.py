"""Leakage as an objective: how near the images of a composition come to faces of real people."""

import functools
from typing import TYPE_CHECKING

import numpy as np

from factory.datasets.centres import pool_embeddings
from factory.datasets.composition import Composition, read_rows
from factory.datasets.index import index
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.recipe import InputError, KnownFaces, Weights, public

if TYPE_CHECKING:
    from factory.recognition.recognizer import Recognizer


def leakage(folder: Store, made: Composition, recognizer: Weights, known: KnownFaces) -> float:
    """Return the mean over a composition's images of the highest cosine to a known face.

    Embeddings of pools are those that `centre_band` uses, kept beside the pools or in the cache.

    Args:
        folder: of the composition.
        made: what it is.
        recognizer: under which cosines are measured; stated by sha256, or read.
        known: embeddings under the same recognizer, such as those of the generator's training faces
            (`measure.py --embeddings`).

    Raises:
        InputError: the known faces are not there, or of another recognizer; or the recognizer is
            not the one that is stated.
    """
    from factory.recognition.faces import load_faces

    load = functools.cache(functools.partial(checked_recognizer, recognizer))
    sha256 = recognizer.sha256 or load().sha256
    faces = load_faces(known.location, known.sha256, sha256, "space known")
    rows, nearest = read_rows(folder, made), []
    for number, name in enumerate(rows.pools):
        store = Store(made.pools[name].url)
        shards = {entry.name: entry.sha256 for entry in load_manifest(store).shards}
        found = index(store, shards)
        taken = np.searchsorted(found.keys, rows.key[rows.pool == number])
        embedded = pool_embeddings(store, shards, found, sha256, load)[taken].astype(np.float64)
        unit = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
        nearest.append(faces.nearest(unit.astype(np.float32)).cosines[:, 0])
    return float(np.concatenate(nearest).mean())


def checked_recognizer(recognizer: Weights) -> "Recognizer":
    """Load a composition's recognizer, having compared it with the stated sha256.

    Raises:
        InputError: it is not there, or another one.
    """
    from factory.recognition.recognizers import load_recognizer

    loaded = load_recognizer(recognizer.location)
    if recognizer.sha256 and loaded.sha256 != recognizer.sha256:
        raise InputError(
            f"recipe field recognizer.sha256: {recognizer.sha256}, but "
            f"{public(recognizer.location)} has {loaded.sha256}"
        )
    return loaded
