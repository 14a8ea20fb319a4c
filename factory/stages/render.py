"""Stage 3: make the images of one attempt, in batches that are a function of the plan."""

from factory.stages.work import Sample, ShardWork
from factory.systems.base import Conditions, System

RENDER_BATCH = 64  # images of one call where the recipe has no sampler


class Render:
    """Sample the system batch by batch."""

    def __init__(self, system: System) -> None:
        """Take the batch size from the recipe's sampler."""
        self.system = system
        sampler = system.recipe.sampler
        self.batch_size = sampler.batch_size if sampler else RENDER_BATCH

    def __call__(self, work: ShardWork) -> ShardWork:
        """Fill `fresh` with one unscreened sample for each position of the attempt."""
        with work.timed("render"):
            work.fresh, work.gpu = [], self.system.gpu()
            if work.conditions is not None:
                for start in range(0, len(work.positions), self.batch_size):
                    part = slice(start, start + self.batch_size)
                    positions = work.positions[part]
                    rendered = self.system.sample(_rows(work.conditions, part), positions)
                    work.fresh += [
                        Sample(position, image, truth)
                        for position, image, truth in zip(
                            positions, rendered.images, rendered.truth, strict=True
                        )
                    ]
        return work


def _rows(conditions: Conditions, part: slice) -> Conditions:
    return Conditions(
        conditions.context[part],
        conditions.target[part],
        {name: value[part] for name, value in conditions.extras.items()},
    )
