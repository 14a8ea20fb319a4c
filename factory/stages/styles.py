"""Stage 2: draw the variation within each identity for the slots still missing."""

import numpy as np

from factory.stages.work import ShardWork
from factory.systems.base import Position, System


class Styles:
    """Draw the conditions of one attempt at every missing slot."""

    def __init__(self, system: System, attempt: int) -> None:
        """Name the attempt: positions of another attempt draw another variation."""
        self.system, self.attempt = system, attempt

    def __call__(self, work: ShardWork) -> ShardWork:
        """Fill `positions` and `conditions`; both are empty where no slot is missing."""
        with work.timed("styles"):
            work.positions = [Position(i, slot, self.attempt) for i, slot in work.missing()]
            work.conditions = None
            if work.positions:
                first = work.shard.identity_start
                rows = np.array([p.identity - first for p in work.positions])
                work.conditions = self.system.vary(work.contexts[rows], work.positions)
        return work
