"""Generates on a local cluster whose nodes come and go midway: `node.py FOLDER MOODS`.

The head has no CPU: whatever is made is made on the other nodes. One is there at the start; a
second joins; the first is killed; the second is taken away; a third comes.
"""

import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from factory.cluster import counters
from factory.cluster.connect import connect
from factory.datasets.claim import read_claim
from factory.datasets.manifest import committed
from factory.datasets.store import Store
from factory.generation.run import generate
from factory.recipe import GenerateRecipe, parse
from factory.training.workers import start_board

store, moods = Store(sys.argv[1]), Path(sys.argv[2])
recipe = parse(read_claim(store)["recipe"])
assert isinstance(recipe, GenerateRecipe)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1)]
ray.init(address=cluster.address, log_to_driver=False)
connect("")
boards = [start_board() for _ in range(3)]  # of trainings that this driver would wait for
counted: list[int] = []
counters.shard = lambda recipe, system, kept, *rest: counted.append(kept)


def say(line: str) -> None:
    """Add a node; kill the first with no farewell; take the other away and add one for both."""
    if line.startswith("shards 1/"):
        nodes.append(cluster.add_node(num_cpus=1))
        print("a node joined", flush=True)
    if line.startswith("shards 3/"):
        cluster.remove_node(nodes[0], allow_graceful=False)
        print("killed a node", flush=True)
    if line.startswith("shards 6/"):
        cluster.remove_node(nodes[1])
        print(f"no node left at {len(committed(store))} shards", flush=True)
        cluster.add_node(num_cpus=2)
        print("added a node", flush=True)
        for gate in moods.glob("*.gate"):
            gate.unlink()


generate(recipe, store, (), say)
print(f"boards have {ray.get([board.fault.remote() for board in boards])}", flush=True)
print(f"counted {len(counted)} shards, {sum(counted)} images", flush=True)
ray.shutdown()
cluster.shutdown()
