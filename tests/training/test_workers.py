"""What workers and driver tell each other, without Ray between them."""

import time
from typing import Any

import pytest
import ray

from factory.cli import FaultError
from factory.training import workers
from factory.training.workers import Board


class Remote:
    """Calls of an actor as Ray spells them, made here."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": staticmethod(getattr(self.held, name))})


def test_a_training_whose_output_another_took_over_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver sees that the lock is lost, the worker hears of it with its next note."""
    monkeypatch.setattr(workers, "RELAY_SEC", 0.01)
    monkeypatch.setattr(ray, "get", lambda value: value)
    board, lost, rows = Board(), [], []

    def check_lock() -> None:
        if lost:
            raise FaultError("another writer took its lock")

    note = workers._noting(Remote(board))
    with workers._relayed(Remote(board), rows.append, lambda name: None, check_lock):
        note("step 1", [{"step": 1.0}], [])
        until = time.monotonic() + 5
        while not rows and time.monotonic() < until:
            time.sleep(0.005)
        lost.append(True)
        while board.fault() is None and time.monotonic() < until:
            time.sleep(0.005)
        with pytest.raises(FaultError, match="another writer took its lock"):
            note("step 2", [{"step": 2.0}], [])
    assert board.fault() == ("run", "another writer took its lock")
    assert rows[0] == {"step": 1.0}
