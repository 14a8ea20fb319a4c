"""Fixtures shared by the tests of exports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import patches
import pytest

from factory.datasets.store import Store
from factory.export.about import About
from factory.export.export import Options, export


@pytest.fixture
def dataset(tmp_path: Path) -> patches.Made:
    return patches.make(tmp_path / "data", tmp_path / "work")


@pytest.fixture
def run(dataset: patches.Made, tmp_path: Path) -> Callable[..., tuple[Path, About]]:
    """Return a function that exports the dataset to a local folder."""

    def run(format: str, name: str = "acme_v1", **options: Any) -> tuple[Path, About]:
        folder = tmp_path / "out" / name
        return folder, export(dataset.store, Store(folder), Options(format, **options))

    return run
