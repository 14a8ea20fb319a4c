"""Rows of a table of inputs as people hand them in: each is right, or one line says why not."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hands
import pytest

Make = Callable[[Path], list[object]]
BEGUN = (
    "out",
    "x.bin",
    "r.html",
)  # what a refused command must not have begun, below a row's folder
MINE = "mine"  # a folder of somebody's, to which nothing may be added


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        name: what is special about the input.
        command: the command.
        make: makes the input below a folder, and returns the command's arguments.
        code: the exit code; -2 for either 1 or 2.
        words: must all stand on the screen.
    """

    name: str
    command: str
    make: Make
    code: int
    words: tuple[str, ...]


def answered(
    row: Row, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """Run a row's command in this process, check what every answer has, and return the screen."""
    arguments = row.make(folder)
    hands.handed(monkeypatch, connects="--address" in arguments)
    ended = hands.run(row.command, arguments, monkeypatch, capfd)
    screen = ended.out + ended.err
    assert ended.code in ((1, 2) if row.code == -2 else (row.code,)), screen[-2000:]
    assert "Traceback" not in screen
    assert [word for word in row.words if word not in screen] == [], screen[-2000:]
    if ended.code == 2:
        assert len(ended.err.strip().splitlines()) == 1, ended.err
        assert len(ended.err) < 2000, len(ended.err)
        for name in BEGUN:
            assert not (folder / name).exists(), f"{name} was begun"
    if (folder / MINE).exists():
        assert [path.name for path in (folder / MINE).iterdir()] == ["me.jpg"]
    return screen
