"""The maker: it makes the images of a shard and tries rejected slots again.

An attempt has three steps: the system varies each identity, the system samples the images in
batches that follow from the plan, and the screens judge them. Slots without a kept image are tried
again with another variation, up to `screens.max_attempts` attempts in all.
"""

from collections.abc import Sequence

import numpy as np

from factory.cluster import hardware
from factory.datasets.provenance import check_versions, checked_sha256
from factory.generation.identities import load_bank
from factory.generation.screen import Screen, known_faces, screens_anything
from factory.generation.work import Assignment, Sample, ShardWork
from factory.plan import Shard
from factory.recipe import GenerateRecipe, InputError, bank_digest, parse, stated_precision
from factory.recognition.recognizers import load_recognizer
from factory.systems import create
from factory.systems.base import Conditions, Position, System

RENDER_BATCH = 64  # images of one call if the recipe has no sampler


class Maker:
    """Makes shards one after another; loads system, teacher and bank once."""

    def __init__(self, assignment: Assignment) -> None:
        """Load system, teacher, known faces and bank.

        Raises:
            InputError: weights, datasets or libraries on this node differ from the assignment's.
        """
        check_versions(assignment.versions)
        recipe = parse(assignment.recipe)
        assert isinstance(recipe, GenerateRecipe)
        gpu = recipe.workers.num_gpus > 0
        hardware.set_up(recipe.workers.threads, gpu, stated_precision(recipe))
        self.system = create(recipe)
        self.system.load()
        self.bank = None
        if self.system.banked:
            self.bank = load_bank(assignment.store, bank_digest(recipe))
            if self.bank is not None:
                self.system.meet(self.bank.contexts)
        self.screen = _screen(recipe, self.system, "cuda" if gpu else "cpu")
        self.attempts = recipe.screens.max_attempts if screens_anything(recipe.screens) else 1

    def __call__(self, shard: Shard) -> ShardWork:
        """Return the shard's work: all its samples, each with its verdict."""
        work = ShardWork(shard)
        self.system.enter(shard)
        with work.timed("identities"):
            contexts = self._contexts(shard)
        for attempt in range(self.attempts):
            with work.timed("styles"):
                positions = [Position(i, slot, attempt) for i, slot in work.missing()]
                if not positions:
                    break
                rows = np.array([p.identity - shard.identity_start for p in positions])
                conditions = self.system.vary(contexts[rows], positions)
            with work.timed("render"):
                fresh = sampled(self.system, conditions, positions)
                work.gpu = self.system.gpu()
            with work.timed("screen"):
                self.screen(work, fresh, conditions)
        work.embeddings = {}
        return work

    def _contexts(self, shard: Shard) -> np.ndarray:
        """Return the contexts of the shard's identities, float32 [n, D]."""
        start, stop = shard.identity_start, shard.identity_stop
        if self.bank is None:
            return self.system.draw_contexts(range(start, stop))
        return self.bank.contexts[start:stop]


def sampled(system: System, conditions: Conditions, positions: Sequence[Position]) -> list[Sample]:
    """Return an unscreened sample for each position; samples are made in batches."""
    sampler = system.recipe.sampler
    size = sampler.batch_size if sampler else RENDER_BATCH
    made = []
    for start in range(0, len(positions), size):
        part = slice(start, start + size)
        rendered = system.sample(_rows(conditions, part), positions[part])
        made += [
            Sample(position, image, truth)
            for position, image, truth in zip(
                positions[part], rendered.images, rendered.truth, strict=True
            )
        ]
    return made


def _rows(conditions: Conditions, part: slice) -> Conditions:
    return Conditions(
        conditions.context[part],
        conditions.target[part],
        {name: value[part] for name, value in conditions.extras.items()},
    )


def _screen(recipe: GenerateRecipe, system: System, device: str) -> Screen:
    """Return the recipe's screens, with the teacher and the known faces they compare with.

    The teacher embeds in the sampler's precision.
    """
    if recipe.teacher is None:
        return Screen(system, None)
    checked_sha256("teacher", recipe.teacher)
    low = stated_precision(recipe) == "bfloat16"
    dtype = "bfloat16" if low else "float32"
    teacher = load_recognizer(recipe.teacher.location, dtype, device)
    faces = known_faces(recipe)
    if faces is not None and faces.unit.shape[1] != teacher.dimension:
        raise InputError(
            "recipe field screens.real_lookalike.embeddings: they have "
            f"{faces.unit.shape[1]} numbers each, the teacher's {teacher.dimension}; they must be "
            "embeddings under that teacher"
        )
    return Screen(system, teacher, faces)
