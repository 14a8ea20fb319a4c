"""Stage 4: a verdict on every image. A verdict other than `keep` is the only way out."""

from typing import Protocol

import numpy as np

from factory.recipe import Screens
from factory.shards.manifest import REASONS
from factory.stages.work import KEEP, ShardWork
from factory.systems.base import System

IDENTITY_DRIFT, NEAR_DUPLICATE = "identity_drift", "near_duplicate"
assert {IDENTITY_DRIFT, NEAR_DUPLICATE} <= set(REASONS)


class Embedder(Protocol):
    """What screens ask of a recognizer."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Return raw embeddings, float32 [B, D], of uint8 [B, S, S, 3] RGB images."""
        ...


class Screen:
    """Measure each fresh image under the teacher and mark it with a verdict."""

    def __init__(self, system: System, teacher: Embedder | None) -> None:
        """Without a teacher nothing is measured and every image is kept."""
        self.system, self.teacher = system, teacher
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
        embeddings = teacher.embed(np.stack([sample.image for sample in work.fresh]))
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        cosines = np.sum(embeddings * work.conditions.context, axis=1)
        for row, sample in enumerate(work.fresh):
            sample.cosine = float(cosines[row])
            drift = sample.cosine - float(work.conditions.target[row])
            sample.verdict, sample.score = self._verdict(work, sample, drift, embeddings[row])
            if sample.verdict == KEEP:
                slot = (sample.position.identity, sample.position.slot)
                work.embeddings[slot] = embeddings[row]

    def _verdict(
        self, work: ShardWork, sample, drift: float, embedding: np.ndarray
    ) -> tuple[str, float | None]:
        rule = self.screens.identity_drift
        distance = max(-drift, 0.0) if self.system.one_sided else abs(drift)
        if rule is not None and not distance <= rule.tolerance:  # a NaN is a drift
            return IDENTITY_DRIFT, distance
        rule = self.screens.near_duplicate
        if rule is not None:
            kept = [v for k, v in work.embeddings.items() if k[0] == sample.position.identity]
            nearest = max((float(embedding @ v) for v in kept), default=-1.0)
            if nearest > rule.max_cosine:
                return NEAR_DUPLICATE, nearest
        return KEEP, sample.cosine
