"""Nodes are killed, taken away and added while a generation runs: the same bytes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from factory.datasets.claim import write_claim
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.recipe import content_digest

HERE = Path(__file__).parent


@pytest.mark.ray
def test_nodes_come_and_go(plain, make_alone, tars, parts, tmp_path: Path) -> None:
    """One is killed: the other goes on. That is taken away too: a new one does the rest."""
    recipe = plain("workers.max=2", "identities.count=24", "identities.images_each=16")
    make_alone(recipe, Store(tmp_path / "whole"))
    store = Store(tmp_path / "moved")
    write_claim(store, recipe, content_digest(recipe, versions()), ())
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        [sys.executable, str(HERE / "node.py"), str(tmp_path / "moved")],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "killed a node" in ran.stdout and "added a node" in ran.stdout
    left = re.search(r"no node left at (\d+) shards", ran.stdout)
    assert left and int(left[1]) < 24, "all was made before the last node went"
    assert "counted 24 shards, 384 images" in ran.stdout  # once each, though some were made twice
    assert "boards have [None, None, None]" in ran.stdout  # the driver's node is none of those
    store.sweep()
    assert tars(store) == tars(Store(tmp_path / "whole"))
    assert verify(store) == [] and parts(tmp_path) == []
