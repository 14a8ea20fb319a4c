"""The tries of rows: what an actor works on is noted where its end cannot take the note along.

Ray starts a process that ended again and hands it the same row, without end. So each actor notes
what it begins in the store of Ray's head, and takes the note back when it is done. Whoever finds a
note of its own row knows that a process ended there before. Each flow of rows has its own notes.
"""

import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private import state, worker
from ray.experimental import internal_kv as kv

NAMESPACE = b"factory-tries"
AGAIN = 3  # how often a row is made again after its process ended, before it is left out


@dataclass(frozen=True)
class Note:
    """What one process works on.

    Attributes:
        stage: the pool's name, or LOAD while the actor is made.
        row: the row's name.
        size: how large the row is, in any unit that its time grows with.
        ended: how many processes ended at this row before, each on a node that lived on.
        actor: Ray's id of the actor.
        node: Ray's id of the node.
        process: the process's id there.
        born: when the process was started, in clock ticks of its node; it tells two processes with
            one id apart.
    """

    stage: str
    row: str
    size: int
    ended: int
    actor: str
    node: str
    process: int
    born: int


@dataclass(frozen=True)
class Tries:
    """The notes of one flow of rows; small, and sent to each of its actors.

    Attributes:
        run: tells the notes of this flow from all others.
    """

    run: str = field(default_factory=lambda: secrets.token_hex(8))

    def begin(self, stage: str, row: str, size: int = 1) -> int:
        """Note that this process begins a row; return how many processes ended at it before.

        A process whose node is gone or going does not count: no row ends a node.
        """
        key, context = self._key(stage, row), ray.get_runtime_context()
        found, ended = kv._internal_kv_get(key, namespace=NAMESPACE), 0
        if found:
            last = Note(**json.loads(found))
            ended = last.ended + (last.node in _staying())
        process = os.getpid()
        note = Note(
            *(stage, row, size, ended),
            *(context.get_actor_id() or "", context.get_node_id()),
            *(process, born(process)),
        )
        kv._internal_kv_put(key, json.dumps(asdict(note)), namespace=NAMESPACE)
        return ended

    def end(self, stage: str, row: str) -> None:
        """Take back the note of a row that is done."""
        kv._internal_kv_del(self._key(stage, row), namespace=NAMESPACE)

    def notes(self) -> Iterator[Note]:
        """Yield what is being worked on, as far as its actors noted it."""
        keys = kv._internal_kv_list(f"{self.run}/", namespace=NAMESPACE)
        client: Any = worker.global_worker
        for text in client.gcs_client.internal_kv_multi_get(keys, NAMESPACE).values():
            yield Note(**json.loads(text))

    def forget(self) -> None:
        """Take back all notes."""
        kv._internal_kv_del(f"{self.run}/", del_by_prefix=True, namespace=NAMESPACE)

    def _key(self, stage: str, row: str) -> str:
        return f"{self.run}/{stage}/{row}"


def _staying() -> set[str]:
    """Return the ids of the nodes that live and are not about to be taken away."""
    going = state.state.get_draining_nodes()
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]} - set(going)


def born(process: int) -> int:
    """Return when a process of this node was started, in clock ticks; -1 if there is none."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return int(after_name[19])
