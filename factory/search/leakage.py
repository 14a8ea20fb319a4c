"""Leakage as an objective: how similar a composition's images are to faces of real people."""

import functools

import numpy as np

from factory.datasets.centres import pool_embeddings
from factory.datasets.composition import Composition, read_rows
from factory.datasets.index import index
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.recipe import KnownFaces, Weights


def leakage(folder: Store, made: Composition, recognizer: Weights, known: KnownFaces) -> float:
    """Return the mean over a composition's images of the highest cosine to a known face.

    The pools' embeddings are those of `centre_band`, beside the pools or in the cache.

    Args:
        folder: the composition's folder.
        made: the composition.
        recognizer: the recognizer that measures cosines; without a sha256 its file is read.
        known: embeddings under the same recognizer, such as those of the generator's training faces
            (the command measure with --embeddings).

    Raises:
        InputError: the known faces are missing or belong to another recognizer, or the recognizer's
            sha256 is not the stated one.
    """
    from factory.recognition.faces import load_faces
    from factory.recognition.recognizers import checked_recognizer

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
