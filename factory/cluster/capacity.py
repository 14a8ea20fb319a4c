"""The capacity of a cluster: requests that it can never schedule are refused at the start."""

import os
from collections.abc import Sequence

import ray

from factory.nodes import GROWS_TO, Group, Reservation, grows_to, place
from factory.recipe import Engine


def trainers(engine: Engine) -> Reservation:
    """Return what the workers of a training reserve."""
    return Reservation(
        "engine.workers", "engine.", engine.workers, engine.num_cpus, engine.num_gpus
    )


def require(reserved: Sequence[Reservation]) -> None:
    """Refuse requests that the connected cluster can never schedule, before anything starts.

    Ray would let an impossible request wait for ever without a message (docs/contracts.md 8).

    Raises:
        InputError: no node is large enough for one actor, or the cluster is too small for all.
    """
    place(reserved, _groups())


def cpus() -> int:
    """Return the CPUs of the connected cluster, including those that autoscaling may add."""
    return max(int(sum(group.count * group.cpus for group in _groups())), 1)


def gpus() -> float:
    """Return the GPUs of the connected cluster, including those that autoscaling may add."""
    return sum(group.count * group.gpus for group in _groups())


def _groups() -> list[Group]:
    """Return the groups of FACTORY_GROWS_TO, or each living node as one."""
    if said := os.environ.get(GROWS_TO, ""):
        return grows_to(said)
    living = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [Group(name, 1, has.get("CPU", 0.0), has.get("GPU", 0.0)) for name, has in living]
