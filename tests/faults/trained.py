"""Trains on two nodes, of which one is lost and comes back, twice: `trained.py FOLDER`.

The first time the training is left alone. The second time its operator ends it, goes on with one
worker, and with two when the node is back. Each node has a cache of its own, and so has the driver,
which fails if it opens a tar.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from factory.datasets.store import Store
from factory.training import checkpoint

COMMAND = """
from factory.__main__ import main
from factory.datasets.store import Store

def refusing(once):
    def refuse(self, name, *more):
        assert not name.endswith(".tar"), f"the driver opens {name}"
        return once(self, name, *more)
    return refuse

for way in ("read", "open_input", "open_random", "fetch", "local"):
    setattr(Store, way, refusing(getattr(Store, way)))
main()
"""
folder = Path(sys.argv[1])
environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
    "XDG_CACHE_HOME": str(folder / "driver"),
    "FACTORY_GROWS_TO": "2x1",
}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})


def add(name: str):
    """Start a node with room for one worker; jobs wait for it."""
    cache = {"XDG_CACHE_HOME": str(folder / name)}
    return cluster.add_node(wait=False, num_cpus=1, env_vars=cache)


class Job:
    """The command of the training, as an operator types it."""

    def __init__(self, out: str, *more: str) -> None:
        """Start it; its output is followed through a file."""
        self.store, self.log = Store(folder / out), folder / f"{out}-{time.time_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", COMMAND, "train_diffusion"),
                    *(str(folder / "recipe.yaml"), "--out", str(folder / out)),
                    *("--address", cluster.address or ""),
                    *("--tracking-uri", f"sqlite:///{folder}/mlflow.db", *more),
                ],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def loses(self, node) -> None:
        """Kill all that runs on a node, with no farewell, and let it tell that it waits."""
        before = len(self.log.read_text())
        cluster.remove_node(node, allow_graceful=False)
        while "waiting for " not in self.log.read_text()[before:]:
            self.lives()

    def reaches(self, step: int) -> None:
        """Wait for the checkpoint of a step, or a later one."""
        while (checkpoint.latest(self.store) or 0) < step:
            self.lives()

    def lives(self) -> None:
        """Let it work for a moment."""
        assert self.process.poll() is None, self.log.read_text()
        time.sleep(0.02)

    def ends(self) -> None:
        """Wait for its end, and show all that it said."""
        code = self.process.wait()
        print(f"{self.log.read_text()}exit code {code} of {self.store.url}", flush=True)


first, second = add("a"), add("b")
Job("whole").ends()
job = Job("lost")
job.reaches(3)
job.loses(second)
second = add("b")
job.reaches(9)
job.loses(first)  # the other node than before
job.process.send_signal(signal.SIGINT)
job.ends()
Job("lost", "--set", "engine.workers=1", "--max-steps", "18").ends()
first = add("a")
Job("lost").ends()
cluster.shutdown()
