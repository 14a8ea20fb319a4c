"""The curve of a training: its numbers over the steps, its speed and the time left."""

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from factory.training.workers import Row, Worker

ROWS = 200  # approximate number of rows of a curve
LINE_SEC = 2.0

B = TypeVar("B")


class Curve:
    """Averages the numbers of steps into rows and sends the rows to the driver.

    Rows end at fixed steps and are part of checkpoints, so that an interruption does not change the
    curve.

    Args:
        name: the recipe's name.
        total: steps of the whole training.
        batch_size: images of a step, over all workers.
        per_epoch: steps of one pass over the data.
        worker: this worker; only rank 0 sends rows.
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
        """Return the curve's part of a checkpoint."""
        return {
            "curve": list(self.curve),
            "seconds": self.seconds + time.monotonic() - self.last,
            "sums": dict(self.sums),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's part."""
        self.curve, self.seconds = state["curve"], state["seconds"]
        self.sums = {name: (total, count) for name, (total, count) in state["sums"].items()}
        self.last = time.monotonic()
        self.rows = list(self.curve)  # a new driver, or one that was killed, may not have them

    def waiting(self, batches: Iterator[B]) -> Iterator[B]:
        """Pass batches on, and count the time spent waiting for them."""
        while True:
            asked = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield batch

    def add(self, step: int, numbers: dict[str, float], rate: float) -> None:
        """Count a step; `step` is the number of steps done."""
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
        """Send new rows and pictures to the driver."""
        self.told = time.monotonic()
        rows, pictures = self.rows, self.pictures
        self.rows, self.pictures = [], []
        if self.worker.rank == 0:
            self.worker.note(self._line(step), rows, pictures)

    def end(self) -> None:
        """Send the rows that are left.

        These are all rows if the training was killed after its last checkpoint.
        """
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
    """Return the peak memory of this process in GB: on the GPU, or else on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
