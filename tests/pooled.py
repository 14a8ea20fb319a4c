"""Rows through the actors of pools in this process, as Ray Data hands them on, without Ray."""

import pickle
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from factory.cluster.workers import ActorPool, Guarded, column
from factory.plan import Shard

HERE = SimpleNamespace(get_actor_id=lambda: "here")


def through(pools: Sequence[ActorPool], shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """Take shards through one actor of each pool; what passes between two is pickled."""
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "get_runtime_context", lambda: HERE)
        actors = [Guarded(pool.actor, *pool.arguments) for pool in pools]
        for shard in shards:
            row: dict[str, Any] = {"shard": column(shard)}
            for actor in actors:
                row = actor(pickle.loads(pickle.dumps(row)))
            rows.append({name: value[0] for name, value in row.items()})
    return rows
