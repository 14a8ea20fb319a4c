"""Generates on a head that autoscales, and waits until its nodes are gone: `URL ADDRESS MOODS`.

A node is killed midway. The last shard is held until the pool has given back all makers but one.
"""

import sys
import threading
import time
from pathlib import Path

import psutil
import ray

from factory.cluster.connect import connect
from factory.datasets.claim import read_claim
from factory.datasets.store import Store
from factory.generation.run import generate
from factory.recipe import GenerateRecipe, parse

store, moods = Store(sys.argv[1]), Path(sys.argv[3])
recipe = parse(read_claim(store)["recipe"])
assert isinstance(recipe, GenerateRecipe)
connect(sys.argv[2])
most, shards_done = 0, 0
over = threading.Event()


def nodes() -> list[dict]:
    """Return the nodes that compute."""
    return [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]


def kill() -> None:
    """Kill a node with no farewell: its raylet, whose workers follow."""
    socket = nodes()[0]["RayletSocketName"]
    for process in psutil.process_iter():
        try:
            if process.name() == "raylet" and any(socket in word for word in process.cmdline()):
                process.kill()
                print("killed a node", flush=True)
        except psutil.Error:  # it has ended, or is another user's
            continue


def say(line: str) -> None:
    """Kill a node when four shards are made."""
    global shards_done
    if line.startswith("shards "):
        shards_done += 1
    if shards_done == 4:
        kill()


def follow() -> None:
    """Count the nodes, and let the last shard be made when the others' CPUs are free."""
    global most
    while not over.wait(1.0):
        living = len(nodes())
        most = max(most, living)
        taken = living - ray.available_resources().get("CPU", 0)
        if shards_done == recipe.identities.count - 1 and taken == 1:
            for gate in moods.glob("*.gate"):
                print(f"1 of {living} CPUs taken at the last shard", flush=True)
                gate.unlink()


print(f"{len(nodes())} nodes before", flush=True)
thread = threading.Thread(target=follow, daemon=True)
thread.start()
generate(recipe, store, (), say)
over.set()
thread.join()
print(f"{most} nodes at work", flush=True)
deadline = time.time() + 600
while nodes() and time.time() < deadline:
    time.sleep(1)
print(f"{len(nodes())} nodes after", flush=True)
