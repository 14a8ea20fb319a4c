"""The curve of a training: what its steps showed, how fast they were, how long it will take."""

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from factory.training.workers import Row, Worker

ROWS = 200  # rows of a curve, about
LINE_SEC = 2.0

B = TypeVar("B")


class Curve:
    """Averages the numbers of steps into rows and tells the driver of them.

    Rows end at fixed steps and go into checkpoints, so that the curve of a training that was
    interrupted is the curve of one that was not.

    Args:
        name: the recipe's.
        total: steps of the whole training.
        batch_size: images of a step, over all workers.
        per_epoch: steps of one pass over the data.
        worker: whom to tell; only rank 0 does.
    """

    def __init__(
        self, name: str, total: int, batch_size: int, per_epoch: int, worker: Worker
    ) -> None:
        self.name, self.total, self.batch_size = name, total, batch_size
        self.per_epoch, self.worker = per_epoch, worker
        self.every = max(total // ROWS, 1)
        self.curve: list[Row] = []
        self.sums: dict[str, tuple[float, int]] = {}
        self.seconds = self.waited = 0.0
        self.steps = 0
        self.last = self.told = time.monotonic()
        self.rows: list[Row] = []
        self.pictures: list[str] = []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "curve": list(self.curve),
            "seconds": self.seconds + time.monotonic() - self.last,
            "sums": dict(self.sums),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's."""
        self.curve, self.seconds = state["curve"], state["seconds"]
        self.sums = {name: (total, count) for name, (total, count) in state["sums"].items()}
        self.last = time.monotonic()
        self.rows = list(self.curve)  # the driver may be another, or not have heard of them yet

    def waiting(self, batches: Iterator[B]) -> Iterator[B]:
        """Pass batches on, counting the time they were waited for."""
        while True:
            asked = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield batch

    def add(self, step: int, numbers: dict[str, float], rate: float) -> None:
        """Count a step; `step` is how many are done."""
        for name, value in numbers.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value, count + 1
        self.steps += 1
        if step % self.every == 0 or step == self.total:
            self._close(step, rate)
        if time.monotonic() - self.told > LINE_SEC or step == self.total:
            self.tell(step)

    def _close(self, step: int, rate: float) -> None:
        now = time.monotonic()
        spent = max(now - self.last, 1e-9)
        self.seconds, self.last = self.seconds + spent, now
        speed = self.steps * self.batch_size / spent
        row = {name: total / count for name, (total, count) in self.sums.items()}
        row |= {
            "step": step,
            "epoch": round(step / self.per_epoch, 3),
            "lr": rate,
            "images_per_second": round(speed, 2),
            "data_wait": round(self.waited / spent, 4),
            "memory_gb": round(memory_gb(self.worker.device), 3),
            "seconds": round(self.seconds, 2),
            "eta_seconds": round((self.total - step) * self.batch_size / speed, 1),
        }
        self.curve.append(row)
        self.rows.append(row)
        self.sums, self.steps, self.waited = {}, 0, 0.0

    def tell(self, step: int) -> None:
        """Tell the driver what is new."""
        self.told = time.monotonic()
        rows, pictures = self.rows, self.pictures
        self.rows, self.pictures = [], []
        if self.worker.rank == 0:
            self.worker.note(self._line(step), rows, pictures)

    def end(self) -> None:
        """Tell what was not told: of a training that was killed after its last checkpoint, all."""
        if self.rows:
            self.tell(self.total)

    def _line(self, step: int) -> str:
        if not self.curve:
            return f"{self.name}: step {step}/{self.total}"
        row = self.curve[-1]
        minutes, seconds = divmod(round(row["eta_seconds"]), 60)
        return (
            f"{self.name}: step {step}/{self.total}, epoch {row['epoch']:.1f}, loss "
            f"{row['loss']:.4f}, {row['images_per_second']:.0f} images/s, "
            f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
        )


def memory_gb(device: torch.device) -> float:
    """Return the most memory this process has held: of the GPU, else of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
