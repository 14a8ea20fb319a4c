"""What a recipe reserves, and the nodes that hold it; pure values.

A cluster is groups of equal nodes. What its nodes could hold together is not enough: an actor lies
on one node, so actors are placed one by one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from factory.recipe import GenerateRecipe, InputError, Workers

GROWS_TO = "FACTORY_GROWS_TO"  # see `grows_to`
TINY = 1e-6  # of a CPU or a GPU, for sums of fractions


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


@dataclass(frozen=True)
class Group:
    """Equal nodes of a cluster: their name, how many there may be, and what one of them has."""

    name: str
    count: int
    cpus: float
    gpus: float


def makers(workers: Workers, most: int | None = None) -> Reservation:
    """Return what a recipe's `workers` reserve at most; `most` caps the number of actors."""
    size = workers.max if most is None else min(workers.max, most)
    return Reservation("workers.max", "workers.", size, workers.num_cpus, workers.num_gpus)


def reservations(recipe: GenerateRecipe) -> list[Reservation]:
    """Return what a recipe's makers reserve, and its committers if it has any."""
    workers, found = recipe.workers, [makers(recipe.workers)]
    if workers.committers:
        count, cpus = workers.committers, workers.committer_num_cpus
        found.append(Reservation("workers.committers", "workers.committer_", count, cpus))
    return found


def grows_to(said: str) -> list[Group]:
    """Read FACTORY_GROWS_TO, which states how large an autoscaling cluster may become.

    Ray's autoscaler does not tell this, so the cluster sets the environment variable on its nodes.

    Args:
        said: COUNTxCPUS or COUNTxCPUS+GPUS for each group of nodes, as in 8x16,16x16+1.

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
        groups.append(Group(group.strip(), count, float(cpus), float(gpus)))
    return groups


def cluster_groups(raw: Any, file: str) -> list[Group]:
    """Return the groups of a cluster file of Ray's, as values (`yaml_values`).

    Args:
        raw: what the file holds; nodes state their CPUs and GPUs in `resources`.
        file: its name, for errors.

    Raises:
        InputError: it has no `available_node_types`, or a group states no `resources`.
    """
    types = raw.get("available_node_types") if isinstance(raw, dict) else None
    if not isinstance(types, dict):
        raise InputError(f"{file}: no available_node_types; accepted is a cluster file of Ray's")
    groups = []
    for name, node in types.items():
        head = name == raw.get("head_node_type")
        try:
            count = 1 if head else int(node.get("max_workers", raw.get("max_workers", 0)))
            has = node["resources"]
            groups.append(Group(str(name), count, float(has["CPU"]), float(has.get("GPU", 0))))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(
                f"{file}: available_node_types.{name}: accepted is max_workers: COUNT and "
                "resources: {CPU: COUNT, GPU: COUNT}"
            ) from None
    return groups


def place(reserved: Sequence[Reservation], groups: Sequence[Group]) -> dict[str, int]:
    """Return how many nodes of each group hold all actors, actors placed one by one.

    Nodes with GPUs are used for what asks for none only where they are needed.

    Raises:
        InputError: no node is large enough for one actor, the groups are too small for all, or the
            nodes leave room for too few actors.
    """
    for kind in ("CPU", "GPU"):
        has = [(group.cpus if kind == "CPU" else group.gpus, group.count) for group in groups]
        largest = max((each for each, count in has if count), default=0.0)
        total = sum(each * count for each, count in has)
        wanted = [(pool, pool.num_cpus if kind == "CPU" else pool.num_gpus) for pool in reserved]
        for pool, each in wanted:
            if each > largest:
                hint = "" if largest else f"; a cluster that grows says by {GROWS_TO} to what"
                raise InputError(
                    f"{_field(pool.each)}num_{kind.lower()}s: {each:g}, but the largest node "
                    f"of the cluster has {largest:g} {kind}; accepted is 0 to {largest:g}{hint}"
                )
        together = sum(pool.size * each for pool, each in wanted)
        if together > total + TINY:
            fields = ", ".join(f"{pool.counted} {pool.size} x {each:g}" for pool, each in wanted)
            raise InputError(
                f"{_field(fields)}: {together:g} {kind} together, but the cluster has {total:g}"
            )
    lacking: list[tuple[Reservation, int]] = []
    for last, spread in product((False, True), repeat=2):
        used, lacks = _placed(reserved, groups, spread, last)
        if lacks is None:
            return used
        lacking.append(lacks)
    pool, room = max(lacking, key=lambda lacks: lacks[1])
    gpus = f" and {pool.num_gpus:g} GPU" if pool.num_gpus else ""
    raise InputError(
        f"{_field(pool.counted)}: {pool.size}, but the nodes of the cluster have room for {room} "
        f"actors of {pool.num_cpus:g} CPU{gpus}, each on one node"
    )


def _placed(
    reserved: Sequence[Reservation], groups: Sequence[Group], spread: bool, last_first: bool
) -> tuple[dict[str, int], tuple[Reservation, int] | None]:
    """Place actors: as many as fit on the fullest node in use, or evenly on all if `spread`.

    Returns:
        The nodes used of each group, and the pool that finds no room with the number placed of it.
    """
    order = sorted(reserved, key=lambda pool: (-pool.num_gpus, -pool.num_cpus))
    used: dict[str, int] = dict.fromkeys((group.name for group in groups), 0)
    begun: list[list[float]] = []  # what is free on each node in use: GPUs, CPUs
    for pool in reversed(order) if last_first else order:
        wanted = (pool.num_gpus, pool.num_cpus)
        placed = 0
        while placed < pool.size:
            fits = [free for free in begun if _room(free, wanted)]
            fresh = [
                group
                for group in groups
                if used[group.name] < group.count and _room((group.gpus, group.cpus), wanted)
            ]
            if fresh and (spread or not fits):
                group = min(fresh, key=lambda group: (group.gpus, group.cpus))
                used[group.name] += 1
                begun.append([group.gpus, group.cpus])
                fits = begun[-1:]
            if not fits:
                return used, (pool, placed)
            node = max(fits) if spread else min(fits)
            left = pool.size - placed
            if spread:
                left = max(left // (len(fits) + sum(g.count - used[g.name] for g in fresh)), 1)
            count = min(left, _room(node, wanted))
            node[0], node[1] = node[0] - count * wanted[0], node[1] - count * wanted[1]
            placed += count
    return used, None


def _room(free: Sequence[float], wanted: tuple[float, float]) -> int:
    """Return how many actors find room in what is free: GPUs, CPUs."""
    needs = [(has, each) for has, each in zip(free, wanted, strict=True) if each]
    return min((int((has + TINY) / each) for has, each in needs), default=1)


def _field(name: str) -> str:
    """Return the first words of an error: the name of a recipe field or of a flag."""
    return name if name.startswith("--") else f"recipe field {name}"
