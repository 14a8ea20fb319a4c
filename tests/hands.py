"""Commands run in this process as a user's hands run them: exit code, and what stands on screen."""

import atexit
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from factory import tracking
from factory.cluster import capacity, connect, workers


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, -1 for an exception that it let through."""

    code: int
    out: str
    err: str


class _Untracked:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextmanager
def untracked(*_: Any, **__: Any) -> Iterator[_Untracked]:
    yield _Untracked()


def each(rows: list[dict[str, Any]], actor: type, assignment: Any, *_: Any) -> Iterator[Any]:
    """Run an actor's rows here, as `factory.cluster.workers.each` does on a cluster."""
    from factory.recipe import FaultError

    worker = actor(assignment)
    for row in rows:
        column = np.empty(1, object)
        (column[0],) = row.values()
        (name,) = row
        done = worker({name: column})
        if "failed" in done:
            raise FaultError(str(done["failed"][0]))
        yield done


def handed(monkeypatch: pytest.MonkeyPatch, connects: bool = False) -> None:
    """Have commands run without Ray, MLflow and what they leave for the end of a process.

    Args:
        monkeypatch: pytest's.
        connects: whether an address is asked all the same, up to where a Ray would be joined.
    """
    monkeypatch.setattr(workers, "each", each)
    monkeypatch.setattr(capacity, "cpus", lambda: 1)
    if connects:
        monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    else:
        monkeypatch.setattr(connect, "connect", lambda *_, **__: None)
    monkeypatch.setattr(tracking, "run", untracked)
    monkeypatch.setattr(atexit, "register", lambda *_, **__: None)


def run(
    command: str,
    arguments: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Ended:
    """Run a command's `main` with these arguments."""
    monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
    capfd.readouterr()
    code, raised = 0, ""
    try:
        import_module(f"factory.commands.{command}").main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except Exception as error:
        code, raised = -1, f"{type(error).__name__}: {error}"
    out, err = capfd.readouterr()
    return Ended(code, out, err + raised)
