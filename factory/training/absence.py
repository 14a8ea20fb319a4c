"""The workers that a training lacks: which were lost, and what the next ones wait for.

After a loss Ray Train starts all workers again as soon as the cluster holds them, and they continue
from the newest checkpoint. By itself it would wait for that without a word.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.util.placement_group import placement_group_table

from factory.cluster.waiting import FIRST_SEC, NEXT_SEC, lacking
from factory.nodes import Reservation

UNPLACED = ("PENDING", "RESCHEDULING")  # states of Ray's placement groups
WRAPPED = "health_check_failure"  # attribute of Ray Train's error about the death of an actor


class Losses(UserCallback):
    """Tells a training's board which workers ended before their time; runs beside Ray Train."""

    def __init__(self, board: Any, workers: int) -> None:
        """Take the board's actor and the number of workers."""
        self.board, self.workers = board, workers

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Note the end of workers; Ray Train ends the others, too."""
        ray.get(self.board.lose.remote(lost(worker_exceptions, self.workers)))


def lost(errors: Mapping[int, Exception], workers: int) -> str:
    """Return in words which workers ended, and why; the first error where none was killed."""
    causes = {rank: getattr(errors[rank], WRAPPED, errors[rank]) for rank in sorted(errors)}
    died = [rank for rank, error in causes.items() if isinstance(error, RayActorError)]
    ranks = died or list(causes)[:1]
    which = f"worker{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {workers}"
    if died:
        return f"{which} lost"
    said = str(causes[ranks[0]]).strip().splitlines()  # a traceback, if Ray Train has one
    return f"{which} failed: {said[-1][:300] if said else 'no reason given'}"


class Absence:
    """Shows who was lost, and now and then what is waited for, while workers are absent."""

    def __init__(
        self, reserved: Reservation, kept: Callable[[], str], say: Callable[[str], None]
    ) -> None:
        """Begin to wait.

        Args:
            reserved: what the workers reserve.
            kept: returns the words about the newest checkpoint.
            say: receives a line for each loss, and one after ten seconds without all workers and
                then every minute, if the cluster has no place for them.
        """
        self.reserved, self.kept, self.say = reserved, kept, say
        self.due = time.monotonic() + FIRST_SEC

    def __call__(self, losses: Sequence[str], present: int) -> None:
        """Show what there is to say now.

        Args:
            losses: words about losses since the last call.
            present: number of workers that train.
        """
        for words in losses:
            self.say(f"{words}; {self.kept()}")
        if losses or present >= self.reserved.size:
            self.due = time.monotonic() + FIRST_SEC
        elif time.monotonic() >= self.due and unplaced(self.reserved):
            self.say(waited_for(self.reserved))
            self.due = time.monotonic() + NEXT_SEC


def waited_for(reserved: Reservation) -> str:
    """Return in words what all workers of a training wait for, and what the cluster has of it."""
    size = reserved.size
    together = replace(
        reserved, num_cpus=size * reserved.num_cpus, num_gpus=size * reserved.num_gpus
    )
    fewer = f"; the same command goes on with fewer {reserved.counted}, too" if size > 1 else ""
    return f"{lacking(together)}{fewer}"


def unplaced(reserved: Reservation) -> bool:
    """Tell whether Ray has found no place yet for workers that reserve this."""
    one = {"CPU": reserved.num_cpus, "GPU": reserved.num_gpus}
    wanted = [{kind: amount for kind, amount in one.items() if amount}] * reserved.size
    return any(
        group["state"] in UNPLACED and list(group["bundles"].values()) == wanted
        for group in placement_group_table().values()
    )
