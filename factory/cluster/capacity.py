"""The capacity of a cluster: requests that it can never schedule are refused at the start."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from factory.recipe import Engine, InputError, Workers

GROWS_TO = "FACTORY_GROWS_TO"  # see `grows_to`


@dataclass(frozen=True)
class Reservation:
    """What a pool of actors reserves at its largest size.

    Attributes:
        counted: the recipe field that holds the number of actors.
        each: words before `num_cpus` and `num_gpus` in the names of the recipe fields that hold
            what one actor reserves, such as "workers.".
        size: number of actors.
        num_cpus: CPUs of one actor.
        num_gpus: GPUs of one actor.
    """

    counted: str
    each: str
    size: int
    num_cpus: float = 1.0
    num_gpus: float = 0.0


def makers(workers: Workers, most: int | None = None) -> Reservation:
    """Return what a recipe's `workers` reserve at most; `most` caps the number of actors."""
    size = workers.max if most is None else min(workers.max, most)
    return Reservation("workers.max", "workers.", size, workers.num_cpus, workers.num_gpus)


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
    nodes = _nodes()
    for kind in ("CPU", "GPU"):
        largest = max((resources.get(kind, 0.0) for resources, _ in nodes), default=0.0)
        total = sum(count * resources.get(kind, 0.0) for resources, count in nodes)
        wanted = [(pool, pool.num_cpus if kind == "CPU" else pool.num_gpus) for pool in reserved]
        for pool, each in wanted:
            if each > largest:
                hint = "" if largest else f"; a cluster that grows says by {GROWS_TO} to what"
                raise InputError(
                    f"{_field(pool.each)}num_{kind.lower()}s: {each:g}, but the largest node "
                    f"of the cluster has {largest:g} {kind}; accepted is 0 to {largest:g}{hint}"
                )
        together = sum(pool.size * each for pool, each in wanted)
        if together > total + 1e-6:
            fields = ", ".join(f"{pool.counted} {pool.size} x {each:g}" for pool, each in wanted)
            raise InputError(
                f"{_field(fields)}: {together:g} {kind} together, but the cluster has {total:g}"
            )


def _field(name: str) -> str:
    """Return the first words of an error: the name of a recipe field or of a flag."""
    return name if name.startswith("--") else f"recipe field {name}"


def cpus() -> int:
    """Return the CPUs of the connected cluster, including those that autoscaling may add."""
    return max(int(sum(n * resources.get("CPU", 0.0) for resources, n in _nodes())), 1)


def gpus() -> float:
    """Return the GPUs of the connected cluster, including those that autoscaling may add."""
    return sum(n * resources.get("GPU", 0.0) for resources, n in _nodes())


def _nodes() -> list[tuple[dict[str, float], int]]:
    """Return (resources of a node, number of such nodes): living ones, or FACTORY_GROWS_TO's."""
    said = os.environ.get(GROWS_TO, "")
    return grows_to(said) if said else [(n["Resources"], 1) for n in ray.nodes() if n["Alive"]]


def grows_to(said: str) -> list[tuple[dict[str, float], int]]:
    """Read FACTORY_GROWS_TO, which states how large an autoscaling cluster may become.

    Ray's autoscaler does not tell this, so the cluster sets the environment variable on its nodes.

    Args:
        said: COUNTxCPUS or COUNTxCPUS+GPUS for each group of nodes, as in 8x16,16x16+1.

    Returns:
        The resources of one node of each group, and how many such nodes there may be.

    Raises:
        InputError: the text has another form.
    """
    groups = []
    for group in said.split(","):
        found = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+))?", group.strip())
        if found is None:
            raise InputError(
                f"{GROWS_TO} {said!r}: accepted is COUNTxCPUS+GPUS, as in 8x16,16x16+1"
            )
        count, cpus, gpus = (int(part or 0) for part in found.groups())
        groups.append(({"CPU": float(cpus), "GPU": float(gpus)}, count))
    return groups
