"""What a training asks of Ray, and what workers and driver tell each other; without Ray."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train.torch

from factory.recipe import FaultError, InputError, load
from factory.training import workers
from factory.training.workers import Board, Worker


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


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (InputError("32x32"), ("input", "32x32")),
        (FaultError("the loss is nan"), ("run", "the loss is nan")),
        (None, None),
    ],
)
def test_what_ends_a_worker_is_handed_to_the_driver(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, fault: tuple[str, str] | None
) -> None:
    def loop(recipe: Any, store: Any, worker: Worker) -> dict[str, Any]:
        assert (recipe.name, store, worker.rank, worker.world) == ("desk", "there", 0, 1)
        if error is not None:
            raise error
        return {"steps": 12}

    alone = SimpleNamespace(get_world_size=lambda: 1, get_world_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: alone)
    monkeypatch.setattr(ray, "get", lambda value: value)
    board, recipe = Board(), load("jobs/recipes/desk/fr/desk.yaml").model_dump(mode="json")
    given = {"loop": loop, "recipe": recipe, "store": "there", "folder": "."}
    workers._work(given | {"board": Remote(board)})
    assert board.fault() == fault and board.summary() == ({} if error else {"steps": 12})


def test_what_a_stopped_training_keeps_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for step, said in ((None, "there is no checkpoint yet"), (12, "step 12 is the newest check")):
        monkeypatch.setattr(workers.checkpoint, "latest", lambda store, step=step: step)
        assert workers._kept(None).startswith(said)  # type: ignore[arg-type]


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

    monkeypatch.setattr("factory.cluster.waiting.wait_for", lambda reserved: None)
    monkeypatch.setattr(workers, "start_board", lambda: None)
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", trainer)
    recipe: Any = load("jobs/recipes/desk/fr/desk.yaml")
    with pytest.raises(Asked) as caught:
        workers.launch(lambda *given: {}, recipe, out)
    assert str(caught.value) == storage
