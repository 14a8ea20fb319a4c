"""Generates on a head that autoscales, then waits until its nodes are gone: `URL ADDRESS`."""

import sys
import time

import ray

from factory.cluster.connect import connect
from factory.datasets.claim import read_claim
from factory.datasets.store import Store
from factory.generation.run import generate
from factory.recipe import GenerateRecipe, parse

store = Store(sys.argv[1])
recipe = parse(read_claim(store)["recipe"])
assert isinstance(recipe, GenerateRecipe)
connect(sys.argv[2])
seen = set()


def nodes() -> int:
    """Count the nodes that compute."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


print(f"{nodes()} nodes before", flush=True)
generate(recipe, store, (), lambda line: seen.add(nodes()))
print(f"{max(seen)} nodes at work", flush=True)
deadline = time.time() + 600
while nodes() and time.time() < deadline:
    time.sleep(1)
print(f"{nodes()} nodes after", flush=True)
