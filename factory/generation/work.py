"""The work of one shard: the samples that a maker makes and a committer writes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from factory.datasets.store import Store
from factory.plan import Shard
from factory.systems.base import Position

KEEP = "keep"


@dataclass(frozen=True)
class Assignment:
    """The constructor argument of makers and committers; it is small and sent to each of them.

    Attributes:
        recipe: the generate recipe as JSON-able values.
        store: the dataset's folder.
        content_digest: the dataset's, for every sidecar and manifest.
        versions: versions of the libraries that compute pixels, where the run was started.
    """

    recipe: dict[str, Any]
    store: Store
    content_digest: str
    versions: dict[str, str]


@dataclass
class Sample:
    """One image that was made: its position, pixels, truth and verdict.

    Attributes:
        position: identity, slot and attempt.
        image: uint8 [S, S, 3] RGB.
        truth: facts that the system knows about the image, JSON-able.
        cosine: the teacher's cosine between the image and its context; None without a teacher.
        verdict: `keep`, or the reason for rejecting it.
        score: the number that decided the verdict.
    """

    position: Position
    image: np.ndarray
    truth: dict[str, Any]
    cosine: float | None = None
    verdict: str = KEEP
    score: float | None = None


@dataclass
class ShardWork:
    """A shard that is being made.

    Attributes:
        shard: the planned shard.
        samples: every image made so far, with its verdict, in key order within an attempt.
        embeddings: float32 [D] unit embeddings of kept images, by (identity, slot); screens
            compare new images with them.
        seconds: time spent, by stage.
        gpu: facts about the GPU that made the images; empty if a CPU did.
    """

    shard: Shard
    samples: list[Sample] = field(default_factory=list)
    embeddings: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gpu: dict[str, str] = field(default_factory=dict)

    def kept(self) -> dict[tuple[int, int], Sample]:
        """Return the kept sample of each filled slot."""
        return {
            (s.position.identity, s.position.slot): s for s in self.samples if s.verdict == KEEP
        }

    def missing(self) -> list[tuple[int, int]]:
        """Return the slots without a kept image, in key order."""
        kept = self.kept()
        return [slot for slot in self.shard.slots if slot not in kept]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage's seconds."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
