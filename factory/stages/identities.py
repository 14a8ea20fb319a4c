"""Stage 1: give each identity of a shard its context."""

from factory.identities import Bank
from factory.stages.work import ShardWork
from factory.systems.base import System


class Identities:
    """Take the shard's contexts from the bank, or from the system where it has no bank."""

    def __init__(self, system: System, bank: Bank | None) -> None:
        """Keep the bank; its rows are identities."""
        self.system, self.bank = system, bank

    def __call__(self, work: ShardWork) -> ShardWork:
        """Fill `contexts`, float32 [identities, D]."""
        with work.timed("identities"):
            start, stop = work.shard.identity_start, work.shard.identity_stop
            if self.bank is None:
                work.contexts = self.system.draw_contexts(range(start, stop))
            else:
                work.contexts = self.bank.contexts[start:stop]
        return work
