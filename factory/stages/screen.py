"""Stage 4: a verdict on every image. A verdict other than `keep` is the only way out."""

from typing import Protocol

import numpy as np

from factory.provenance import checked_sha256
from factory.recipe import GenerateRecipe, Screens
from factory.recognition.faces import load_faces
from factory.recognition.neighbours import Faces
from factory.shards.feed import resized
from factory.shards.manifest import REASONS
from factory.stages.work import KEEP, Sample, ShardWork
from factory.systems.base import System

IDENTITY_DRIFT, REAL_LOOKALIKE = "identity_drift", "real_lookalike"
NEAR_DUPLICATE = "near_duplicate"
assert {IDENTITY_DRIFT, REAL_LOOKALIKE, NEAR_DUPLICATE} <= set(REASONS)


class Embedder(Protocol):
    """What screens ask of a recognizer."""

    @property
    def size(self) -> int:
        """Height and width of the images it takes, in pixels; others are resized bilinearly."""
        ...

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Return raw embeddings, float32 [B, D], of uint8 [B, S, S, 3] RGB images."""
        ...


def known_faces(recipe: GenerateRecipe) -> Faces | None:
    """Return the faces no image may come near; None where the recipe names none.

    Raises:
        InputError: they are not there, are not those the recipe names, or not the teacher's.
    """
    rule = recipe.screens.real_lookalike
    if rule is None:
        return None
    teacher = checked_sha256("teacher", recipe.weights["teacher"])
    named = "recipe field screens.real_lookalike.embeddings"
    return load_faces(rule.embeddings.location, rule.embeddings.sha256, teacher, named)


class Screen:
    """Measure each fresh image under the teacher and mark it with a verdict."""

    def __init__(
        self, system: System, teacher: Embedder | None, faces: Faces | None = None
    ) -> None:
        """Without a teacher nothing is measured and every image is kept.

        Args:
            system: whose images are screened.
            teacher: under which they are.
            faces: what `real_lookalike` compares with.
        """
        self.system, self.teacher, self.faces = system, teacher, faces
        self.screens: Screens = system.recipe.screens

    def __call__(self, work: ShardWork) -> ShardWork:
        """Move `fresh` to `samples`, in key order, each with cosine, verdict and score."""
        with work.timed("screen"):
            if self.teacher is not None and work.fresh:
                self._judge(work, self.teacher)
            work.samples += work.fresh
            work.fresh, work.conditions = [], None
        return work

    def _judge(self, work: ShardWork, teacher: Embedder) -> None:
        assert work.conditions is not None
        images = np.stack([resized(sample.image, teacher.size) for sample in work.fresh])
        embeddings = teacher.embed(images)
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        context = work.conditions.context
        # A context without dimensions is nobody's: there is nothing to be near to.
        measured = context.shape[1] > 0
        cosines = np.sum(embeddings * context, axis=1) if measured else work.conditions.target
        known = self._nearest_known(embeddings)
        for row, sample in enumerate(work.fresh):
            sample.cosine = float(cosines[row]) if measured else None
            drift = float(cosines[row]) - float(work.conditions.target[row])
            sample.verdict, sample.score = self._verdict(
                work, sample, drift, embeddings[row], float(known[row])
            )
            if sample.verdict == KEEP:
                slot = (sample.position.identity, sample.position.slot)
                work.embeddings[slot] = embeddings[row]

    def _nearest_known(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the cosine to the nearest known face, float64 [B]; NaN where there is none."""
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
        if rule is not None and not distance <= rule.tolerance:  # a NaN is a drift
            return IDENTITY_DRIFT, distance
        rule = self.screens.real_lookalike
        if rule is not None and not known <= rule.max_cosine:  # nor is a NaN known to be far
            return REAL_LOOKALIKE, known
        rule = self.screens.near_duplicate
        if rule is not None:
            kept = [v for k, v in work.embeddings.items() if k[0] == sample.position.identity]
            nearest = max((float(embedding @ v) for v in kept), default=-1.0)
            if nearest > rule.max_cosine:
                return NEAR_DUPLICATE, nearest
        return KEEP, sample.cosine
