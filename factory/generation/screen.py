"""Screens: they give every image a verdict, `keep` or the reason for dropping it."""

import numpy as np

from factory.datasets.embeddings import Embedder
from factory.datasets.feed import resized
from factory.datasets.manifest import REASONS
from factory.datasets.provenance import checked_sha256
from factory.generation.work import KEEP, Sample, ShardWork
from factory.recipe import GenerateRecipe, Screens
from factory.recognition.faces import load_faces
from factory.recognition.neighbours import Faces
from factory.systems.base import Conditions, System

IDENTITY_DRIFT, REAL_LOOKALIKE = "identity_drift", "real_lookalike"
NEAR_DUPLICATE = "near_duplicate"
assert {IDENTITY_DRIFT, REAL_LOOKALIKE, NEAR_DUPLICATE} <= set(REASONS)


def known_faces(recipe: GenerateRecipe) -> Faces | None:
    """Return the real faces that no image may resemble; None if the recipe names none.

    Raises:
        InputError: the embeddings are missing, differ from those that the recipe names, or were
            made by another recognizer than the teacher.
    """
    rule = recipe.screens.real_lookalike
    if rule is None:
        return None
    teacher = checked_sha256("teacher", recipe.weights["teacher"])
    named = "recipe field screens.real_lookalike.embeddings"
    return load_faces(rule.embeddings.location, rule.embeddings.sha256, teacher, named)


def screens_anything(screens: Screens) -> bool:
    """Tell whether the recipe has a screen that can reject an image."""
    rules = (screens.identity_drift, screens.near_duplicate, screens.real_lookalike)
    return any(rule is not None for rule in rules)


class Screen:
    """Measures each fresh image under the teacher and gives it a verdict."""

    def __init__(
        self, system: System, teacher: Embedder | None, faces: Faces | None = None
    ) -> None:
        """Set up the recipe's screens; without a teacher every image is kept unmeasured.

        Args:
            system: the system that makes the images.
            teacher: the recognizer that measures them.
            faces: the real faces that `real_lookalike` compares with.
        """
        self.system, self.teacher, self.faces = system, teacher, faces
        self.screens: Screens = system.recipe.screens

    def __call__(self, work: ShardWork, fresh: list[Sample], conditions: Conditions) -> None:
        """Add the samples of an attempt to the shard, each with cosine, verdict and score.

        Args:
            work: the shard, with the samples of its earlier attempts.
            fresh: unscreened samples, in key order.
            conditions: the conditions they were made from, one row for each sample.
        """
        if self.teacher is not None and fresh:
            self._judge(work, fresh, conditions, self.teacher)
        work.samples += fresh

    def _judge(
        self, work: ShardWork, fresh: list[Sample], conditions: Conditions, teacher: Embedder
    ) -> None:
        images = np.stack([resized(sample.image, teacher.size) for sample in fresh])
        embeddings = teacher.embed(images)
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        context = conditions.context
        # A context without dimensions describes nobody, so there is no cosine to it.
        measured = context.shape[1] > 0
        cosines = np.sum(embeddings * context, axis=1) if measured else conditions.target
        known = self._nearest_known(embeddings)
        for row, sample in enumerate(fresh):
            sample.cosine = float(cosines[row]) if measured else None
            drift = float(cosines[row]) - float(conditions.target[row])
            sample.verdict, sample.score = self._verdict(
                work, sample, drift, embeddings[row], float(known[row])
            )
            if sample.verdict == KEEP:
                slot = (sample.position.identity, sample.position.slot)
                work.embeddings[slot] = embeddings[row]

    def _nearest_known(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the cosine to the nearest real face, float64 [B]; NaN if it is unknown."""
        found = np.full(len(embeddings), np.nan)
        finite = np.isfinite(embeddings).all(axis=1)
        if self.faces is not None and finite.any():
            found[finite] = self.faces.nearest(embeddings[finite]).cosines[:, 0]
        return found

    def _verdict(
        self, work: ShardWork, sample: Sample, drift: float, embedding: np.ndarray, known: float
    ) -> tuple[str, float | None]:
        rule = self.screens.identity_drift
        distance = max(-drift, 0.0) if self.system.one_sided else abs(drift)
        if rule is not None and not distance <= rule.tolerance:  # rejects a NaN as well
            return IDENTITY_DRIFT, distance
        rule = self.screens.real_lookalike
        if rule is not None and not known <= rule.max_cosine:  # rejects a NaN as well
            return REAL_LOOKALIKE, known
        rule = self.screens.near_duplicate
        if rule is not None:
            kept = [v for k, v in work.embeddings.items() if k[0] == sample.position.identity]
            nearest = max((float(embedding @ v) for v in kept), default=-1.0)
            if nearest > rule.max_cosine:
                return NEAR_DUPLICATE, nearest
        return KEEP, sample.cosine
