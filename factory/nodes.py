"""What a recipe reserves, and the nodes that hold it; pure values.

A cluster is groups of equal nodes. What its nodes could hold together is not enough: an actor lies
on one node, so actors are placed one by one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from factory.recipe import GenerateRecipe, InputError, Workers

GROWS_TO = "FACTORY_GROWS_TO"  # see `grows_to`
# A cluster file's max_workers where it states none, from ray/autoscaler/PROVIDER/defaults.yaml.
MOST_WORKERS = {"aws": 2, "azure": 2, "gcp": 2, "spark": 8, "vsphere": 5}
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
    """Equal nodes of a cluster.

    Attributes:
        name: of the group.
        count: how many nodes there may be.
        cpus: CPUs of one node.
        gpus: GPUs of one node.
        head: whether it is the cluster's head, which is none of its workers.
    """

    name: str
    count: int
    cpus: float
    gpus: float
    head: bool = False


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
    most = most_workers(raw, file) or 0
    groups = []
    for name, node in types.items():
        head = name == raw.get("head_node_type")
        try:
            count = 1 if head else int(node.get("max_workers", most))
            has = node["resources"]
            cpus, gpus = float(has["CPU"]), float(has.get("GPU", 0))
            groups.append(Group(str(name), count, cpus, gpus, head))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InputError(
                f"{file}: available_node_types.{name}: accepted is max_workers: COUNT and "
                "resources: {CPU: COUNT, GPU: COUNT}"
            ) from None
    return groups


def most_workers(raw: Any, file: str) -> int | None:
    """Return how many workers of all groups together a cluster file of Ray's allows.

    The head is none of them. Where the file states no `max_workers`, it is Ray's own number for
    the provider; None where Ray has none.

    Args:
        raw: what the file holds, a mapping.
        file: its name, for errors.

    Raises:
        InputError: `max_workers` is no count.
    """
    provider = raw.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    most = raw.get("max_workers", MOST_WORKERS.get(str(kind)))
    if most is None and "max_workers" not in raw:
        return None
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise InputError(f"{file}: max_workers: {most!r}; accepted is a count, 0 or more")
    return most


def within(groups: Sequence[Group], most: int | None) -> list[Group]:
    """Return groups with no more workers each than a cluster allows in all; None allows all."""
    return [
        group if group.head or most is None else replace(group, count=min(group.count, most))
        for group in groups
    ]


def place(
    reserved: Sequence[Reservation], groups: Sequence[Group], most: int | None = None
) -> dict[str, int]:
    """Return how many nodes of each group hold all actors, actors placed one by one.

    Nodes with GPUs are used for what asks for none only where they are needed.

    Args:
        reserved: the pools of actors.
        groups: the cluster's.
        most: how many workers of all groups together there may be (`most_workers`); None for all.

    Raises:
        InputError: no node is large enough for one actor, the groups are too small for all, or the
            nodes leave room for too few actors.
    """
    stated = sum(group.count for group in groups if not group.head)
    workers = stated if most is None else min(most, stated)
    capped = workers < stated
    cap = f"; its max_workers allows {most} workers of all groups together" if capped else ""
    groups = within(groups, workers)
    for kind in ("CPU", "GPU"):
        has = [(group.cpus if kind == "CPU" else group.gpus, group) for group in groups]
        largest = max((each for each, group in has if group.count), default=0.0)
        total = _total(has, workers)
        wanted = [(pool, pool.num_cpus if kind == "CPU" else pool.num_gpus) for pool in reserved]
        grows = "" if largest else f"; a cluster that grows says by {GROWS_TO} to what"
        for pool, each in wanted:
            if each > largest:
                raise InputError(
                    f"{_field(pool.each)}num_{kind.lower()}s: {each:g}, but the largest node "
                    f"of the cluster has {largest:g} {kind}; accepted is 0 to {largest:g}"
                    f"{cap or grows}"
                )
        together = sum(pool.size * each for pool, each in wanted)
        if together > total + TINY:
            fields = ", ".join(f"{pool.counted} {pool.size} x {each:g}" for pool, each in wanted)
            raise InputError(
                f"{_field(fields)}: {together:g} {kind} together, but the cluster has {total:g}"
                f"{cap}"
            )
    lacking: list[tuple[Reservation, int]] = []
    order = sorted(reserved, key=lambda pool: (-pool.num_gpus, -pool.num_cpus))
    both = (False, True)
    for last, spread, large in product(both, both, both if capped else (False,)):
        pools = order[::-1] if last else order
        used, lacks = _placed(pools, groups, workers, spread, large)
        if lacks is None:
            return used
        lacking.append(lacks)
    pool, room = max(lacking, key=lambda lacks: lacks[1])
    gpus = f" and {pool.num_gpus:g} GPU" if pool.num_gpus else ""
    raise InputError(
        f"{_field(pool.counted)}: {pool.size}, but the nodes of the cluster have room for {room} "
        f"actors of {pool.num_cpus:g} CPU{gpus}, each on one node{cap}"
    )


def _total(has: Sequence[tuple[float, Group]], workers: int) -> float:
    """Return what the head and the largest workers have together."""
    total = 0.0
    for each, group in sorted(has, key=lambda one: -one[0]):
        count = group.count if group.head else min(group.count, workers)
        workers -= 0 if group.head else count
        total += each * count
    return total


def _placed(
    pools: Sequence[Reservation], groups: Sequence[Group], workers: int, spread: bool, large: bool
) -> tuple[dict[str, int], tuple[Reservation, int] | None]:
    """Place actors, pool by pool.

    Args:
        pools: in the order in which they are placed.
        groups: the cluster's.
        workers: how many nodes besides the head may be in use.
        spread: whether they lie evenly on all nodes, or as many as fit on the fullest one in use.
        large: whether the next node is the one with most room, or the smallest.

    Returns:
        The nodes used of each group, and the pool that finds no room with the number placed of it.
    """
    used: dict[str, int] = dict.fromkeys((group.name for group in groups), 0)
    begun: list[list[float]] = []  # what is free on each node in use: GPUs, CPUs
    for pool in pools:
        wanted = (pool.num_gpus, pool.num_cpus)
        placed = 0
        while placed < pool.size:
            fits = [free for free in begun if _room(free, wanted)]
            fresh = [
                group
                for group in groups
                if used[group.name] < group.count
                and (group.head or workers)
                and _room((group.gpus, group.cpus), wanted)
            ]
            if fresh and (spread or not fits):
                group = _next(fresh, wanted, large)
                used[group.name] += 1
                workers -= 0 if group.head else 1
                begun.append([group.gpus, group.cpus])
                fits = begun[-1:]
            if not fits:
                return used, (pool, placed)
            node = max(fits) if spread else min(fits)
            left = pool.size - placed
            if spread:
                more = sum(g.count - used[g.name] for g in fresh)
                left = max(left // (len(fits) + min(more, workers + 1)), 1)
            count = min(left, _room(node, wanted))
            node[0], node[1] = node[0] - count * wanted[0], node[1] - count * wanted[1]
            placed += count
    return used, None


def _next(fresh: Sequence[Group], wanted: tuple[float, float], large: bool) -> Group:
    """Return the group of the smallest nodes, or of those with most room if `large`."""
    sizes = [(group.gpus, group.cpus) for group in fresh]
    keys = [(-_room(size, wanted) if large else 0, size) for size in sizes]
    return fresh[keys.index(min(keys))]


def _room(free: Sequence[float], wanted: tuple[float, float]) -> int:
    """Return how many actors find room in what is free: GPUs, CPUs."""
    needs = [(has, each) for has, each in zip(free, wanted, strict=True) if each]
    return min((int((has + TINY) / each) for has, each in needs), default=1)


def _field(name: str) -> str:
    """Return the first words of an error: the name of a recipe field or of a flag."""
    return name if name.startswith("--") else f"recipe field {name}"
