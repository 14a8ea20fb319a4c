"""A node of a cluster is lost with the actors on it: the others make its shards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from factory.provenance import versions
from factory.recipe import content_digest
from factory.shards.claim import write_claim
from factory.shards.store import Store
from factory.shards.verify import verify

HERE = Path(__file__).parent


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_killed_node_loses_nothing(plain, make_alone, tars, parts, tmp_path: Path) -> None:
    recipe = plain("pool.size=2")
    make_alone(recipe, Store(tmp_path / "whole"))
    store = Store(tmp_path / "killed")
    write_claim(store, recipe, content_digest(recipe, versions()), ())
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        [sys.executable, str(HERE / "node.py"), str(tmp_path / "killed")],
        capture_output=True, text=True, timeout=380, env=env,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "killed a node" in ran.stdout
    store.sweep()
    assert tars(store) == tars(Store(tmp_path / "whole"))
    assert verify(store) == [] and parts(tmp_path) == []
