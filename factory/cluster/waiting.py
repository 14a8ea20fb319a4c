"""Waiting for a cluster that is busy, or still growing: never without a word."""

import time
from collections.abc import Callable

import ray
from ray._private import state

from factory.cluster.connect import started_here
from factory.cluster.progress import notice
from factory.nodes import Reservation

FIRST_SEC, NEXT_SEC = 10.0, 60.0  # before the first line of what is waited for, and the next ones
SETTLE_SEC = 5.0  # until Ray's view of what is free has heard of a task that ended


def wait_for_pool(reserved: Reservation, least: int, say: Callable[[str], None] = notice) -> None:
    """Return when the connected cluster holds one actor of a pool, and tell if it holds too few.

    Args:
        reserved: the pool.
        least: how many actors it begins with.
        say: receives the lines of `wait_for`, then perhaps that of `tell_of_room`.
    """
    roomy = _room(reserved) >= least
    wait_for(reserved, say)
    if not roomy:
        tell_of_room(reserved, least, say)


def wait_for(reserved: Reservation, say: Callable[[str], None] = notice) -> None:
    """Return when the connected cluster holds one actor of a pool.

    A task that reserves as much is scheduled as the actor will be, so that an autoscaler hears of
    it. A local Ray of this process serves nobody else: there is nothing to wait for.

    Args:
        reserved: what one actor reserves.
        say: receives a line after ten seconds and then every minute.
    """
    if started_here():
        return
    # A trial of a sweep has a placement group, which holds nothing for the trainers that it starts.
    reserve = ray.remote(
        num_cpus=reserved.num_cpus, num_gpus=reserved.num_gpus, scheduling_strategy="DEFAULT"
    )
    task = reserve(_held)
    held, patience = task.remote(), FIRST_SEC
    while not ray.wait([held], timeout=patience)[0]:
        say(lacking(reserved))
        patience = NEXT_SEC
    ray.get(held)


def _held() -> None:
    """Do nothing, on what was reserved."""


def lacking(reserved: Reservation) -> str:
    """Return in words what is waited for, and what the cluster has of it."""
    has, free, words = ray.cluster_resources(), ray.available_resources(), []
    for kind, wanted in (("CPU", reserved.num_cpus), ("GPU", reserved.num_gpus)):
        total, left = has.get(kind, 0.0), free.get(kind, 0.0)
        if wanted:
            taken = "none yet" if not total else f"{total:g}, {_taken(left)}"
            words.append(f"{wanted:g} {kind}; the cluster has {taken}")
    return f"waiting for {' and for '.join(words)}"


def _taken(left: float) -> str:
    return "all taken" if left < 1e-6 else f"of which {left:g} are free"


def tell_of_room(reserved: Reservation, least: int, say: Callable[[str], None] = notice) -> None:
    """Tell in one line if the connected cluster has room for fewer actors than a pool begins with.

    Those for which there is room begin, and Ray starts the others when nodes join or become free.
    What is free is asked for some seconds: what ended a moment ago is not free in Ray's view yet.

    Args:
        reserved: the pool.
        least: how many actors it begins with.
        say: receives the line.
    """
    if started_here():
        return
    until = time.monotonic() + SETTLE_SEC
    while (room := max(_room(reserved), 1)) < least:  # one was just waited for
        if time.monotonic() < until:
            time.sleep(0.1)
            continue
        count = sum(node["Alive"] for node in ray.nodes())
        say(
            f"{room:.0f} of {least} actors begin ({reserved.counted} {reserved.size}); the others "
            f"wait for free CPUs and GPUs, or for nodes to join the {count} there"
        )
        return


def _room(reserved: Reservation) -> float:
    """Return how many actors find room in what is free on the cluster's nodes now."""
    free = state.available_resources_per_node().values()
    return sum(_fits(node, reserved) for node in free)


def _fits(free: dict[str, float], reserved: Reservation) -> float:
    """Return how many actors find room in what is free on a node."""
    wanted = (("CPU", reserved.num_cpus), ("GPU", reserved.num_gpus))
    rooms = [(free.get(kind, 0.0) + 1e-6) // each for kind, each in wanted if each]
    return min(rooms, default=float("inf"))
