"""Generates on a local cluster of three nodes and kills one of them midway: `node.py FOLDER`."""

import sys

import ray
from ray.cluster_utils import Cluster

from factory.engine import connect, generate
from factory.recipe import GenerateRecipe, parse
from factory.shards.claim import read_claim
from factory.shards.store import Store

store = Store(sys.argv[1])
recipe = parse(read_claim(store)["recipe"])
assert isinstance(recipe, GenerateRecipe)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
connect("")


def say(line: str) -> None:
    """Kill a node, with no farewell, when the first shards are there."""
    if line.startswith("shards 3/"):
        cluster.remove_node(nodes[0], allow_graceful=False)
        print("killed a node", flush=True)


generate(recipe, store, (), say)
ray.shutdown()
cluster.shutdown()
