"""What a training asks of Ray, and what workers and driver tell each other; without Ray."""

import time
from typing import Any

import pytest
import ray
import ray.train.torch

from factory.recipe import FaultError, load
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
        while not rows:
            time.sleep(0.005)
        lost.append(True)
        while board.fault() is None:
            time.sleep(0.005)
        with pytest.raises(FaultError, match="another writer took its lock"):
            note("step 2", [{"step": 2.0}], [])
    assert board.fault() == ("run", "another writer took its lock")
    assert rows[0] == {"step": 1.0}


class Asked(Exception):
    """Carries what was asked for."""


@pytest.mark.parametrize(
    ("out", "storage"),
    [
        ("s3://b/run?endpoint_override=h:9000", "s3://b/run/ray?endpoint_override=h:9000"),
        ("/runs/fr", "/runs/fr/ray"),
    ],
)
def test_rays_notes_lie_below_the_output_whatever_its_query(
    monkeypatch: pytest.MonkeyPatch, out: str, storage: str
) -> None:
    def trainer(*given: Any, run_config: Any, **named: Any) -> None:
        raise Asked(run_config.storage_path)

    monkeypatch.setattr(workers, "start_board", lambda: None)
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", trainer)
    recipe: Any = load("jobs/recipes/desk/fr/desk.yaml")
    with pytest.raises(Asked) as caught:
        workers.launch(lambda *given: {}, recipe, out)
    assert str(caught.value) == storage
