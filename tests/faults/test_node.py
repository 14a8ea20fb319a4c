"""Nodes join, are killed, taken away and added while a generation runs: the same bytes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from moody import moody

from factory.datasets.claim import write_claim
from factory.datasets.provenance import versions
from factory.datasets.store import Store
from factory.datasets.verify import verify
from factory.nodes import GROWS_TO
from factory.plan import shards
from factory.recipe import content_digest
from factory.systems import ELSEWHERE

HERE = Path(__file__).parent


@pytest.mark.ray
def test_nodes_come_and_go(
    make_alone, tars, parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of one or two makers: it uses the node that joins, and goes on without those lost."""
    monkeypatch.setenv(ELSEWHERE, "moody")
    moods = tmp_path / "moods"
    recipe = moody(moods, 12, max=2, min=1)
    make_alone(recipe, Store(tmp_path / "whole"))
    names = [shard.name for shard in shards(recipe)]
    for name in names[:8]:  # the second that begins, whichever it is, waits for the joined node
        (moods / f"{name}.nodes").write_text("2")
    for name in names[8:]:
        (moods / f"{name}.gate").touch()  # not made before the last node has come
    store = Store(tmp_path / "moved")
    write_claim(store, recipe, content_digest(recipe, versions()), ())
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}", GROWS_TO: "2x1"}
    env |= {"RAY_health_check_period_ms": "500"}  # of Ray: a killed node is missed sooner
    ran = subprocess.run(
        [sys.executable, str(HERE / "node.py"), str(tmp_path / "moved"), str(moods)],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "a node joined" in ran.stdout and "killed a node" in ran.stdout
    assert "added a node" in ran.stdout
    left = re.search(r"no node left at (\d+) shards", ran.stdout)
    assert left and int(left[1]) < 12, "all was made before the last node went"
    assert "counted 12 shards, 24 images" in ran.stdout  # once each, though some were made twice
    assert "is made again" not in ran.stdout, "a node that goes is no fault of a shard"
    assert "boards have [None, None, None]" in ran.stdout  # the driver's node is none of those
    store.sweep()
    assert tars(store) == tars(Store(tmp_path / "whole"))
    assert verify(store) == [] and parts(tmp_path) == []
