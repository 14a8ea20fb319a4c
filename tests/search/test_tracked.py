"""Runs of a sweep in a real sqlite store, read back with MLflow's own client."""

import pytest

from factory.datasets.store import Store
from factory.search import Choice, Space
from factory.search.tracked import Tracked

SPACE = Space("s", "?", {"x": Choice(1, 2)}, dict)
BEGUN = {"number": 0, "point": {"x": 1}, "compose": {}, "fr": {}, "pools": {}}


@pytest.mark.slow
def test_a_sweep_on_a_new_head_begins_new_runs_and_says_so(tmp_path):
    from mlflow import MlflowClient

    uri, said, store = f"sqlite:///{tmp_path}/new.db", [], Store(tmp_path)
    with Tracked(uri, SPACE, store, "a" * 32, said.append) as tracked:
        run = tracked.begin(BEGUN | {"run_id": "b" * 32})
        tracked.abandon(0, "refused", "2 qualify")
    assert len(said) == 2 and "a" * 32 in said[0] and "b" * 32 in said[1]
    with Tracked(uri, SPACE, store, tracked.run.id, said.append) as again:
        assert (again.run.id, again.begin(BEGUN | {"run_id": run})) == (tracked.run.id, run)
    assert len(said) == 2
    found = MlflowClient(uri).get_run(run)
    assert found.data.tags["mlflow.parentRunId"] == tracked.run.id
