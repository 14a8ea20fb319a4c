"""Embedding a dataset by a pool of actors, each with the recognizer, on any nodes of a cluster.

The dataset is cut between batches, where a single process would cut it too, so that the embeddings
are those of a single process with as many threads, to the last bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.evaluation.dataset import BATCH, Embedded, embedded, joined, shard_samples
from factory.recipe import InputError

ROW = 8 * BATCH  # images of a row of work


@dataclass(frozen=True)
class Piece:
    """Some samples of a dataset in its order.

    Attributes:
        number: its place among the pieces.
        shards: the shards that hold it, sorted.
        skip: samples of the first shard that come before it.
        take: how many samples it has.
        ends: whether the last shard ends with it.
    """

    number: int
    shards: tuple[str, ...]
    skip: int
    take: int
    ends: bool


class EmbedActor:
    """Embeds pieces of a dataset; loads the recognizer once."""

    def __init__(self, assignment: tuple[Store, str, str, bool]) -> None:
        """Load the recognizer; InputError if this node has other weights than the driver."""
        from factory.recognition.recognizers import load_recognizer

        self.store, reference, sha256, self.resize = assignment
        self.recognizer = load_recognizer(reference)
        if self.recognizer.sha256 != sha256:
            raise InputError(
                f"--recognizer {reference}: sha256 {self.recognizer.sha256} here, accepted is "
                f"{sha256}, as where the command was started"
            )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the embeddings of a piece."""
        from factory.cluster.workers import column

        (piece,) = batch["piece"]
        found = chain.from_iterable(shard_samples(self.store, name) for name in piece.shards)
        samples = islice(found, piece.skip, piece.skip + piece.take)
        made = embedded(self.store, samples, self.recognizer, self.resize)
        if piece.ends:
            next(found, None)  # the end of a shard tells whether it is the one that was committed
        return {"number": np.array([piece.number]), "made": column(made)}


def embed_by_pool(
    store: Store, reference: str, sha256: str, actors: int, resize: bool = False
) -> Embedded:
    """Embed a finished dataset as `embed_dataset` does, by a pool of actors of one CPU each.

    The embeddings are in memory, 4 x N x D bytes.

    Args:
        store: a dataset with its manifest.
        reference: of the recognizer, which every node can load.
        sha256: of its weights.
        actors: number of actors; the caller connects Ray.
        resize: whether images of another size are scaled.

    Raises:
        InputError: the dataset is not finished, a node has other weights, or as `embed_dataset`.
        FaultError: a shard is damaged, or not what its manifest says.
    """
    from factory.cluster.workers import each
    from factory.nodes import Reservation

    cut = list(pieces(store))
    parts: dict[int, Embedded] = {}
    reserved = Reservation("--tasks", "--tasks ", min(actors, max(len(cut), 1)))
    rows = ({"piece": piece} for piece in cut)
    for row in each(rows, EmbedActor, (store, reference, sha256, resize), reserved):
        parts[int(row["number"])] = row["made"]
    if not parts:
        raise InputError(f"dataset {store.url}: it has no image")
    ordered = [parts.pop(number) for number in range(len(cut))]
    keys = tuple(chain.from_iterable(part.keys for part in ordered))
    labels = np.concatenate([part.labels for part in ordered])
    units = [part.unit for part in ordered]
    ordered.clear()
    return Embedded(joined(units), labels, keys)


def pieces(store: Store) -> Iterator[Piece]:
    """Yield a finished dataset in pieces of `ROW` samples, in the order of its shards' names."""
    shards = sorted((entry.name, entry.kept) for entry in load_manifest(store).shards)
    number, names, skip, held = 0, [], 0, 0  # `held` samples lie in `names`, the first `skip` aside
    for name, kept in shards:
        names.append(name)
        held += kept
        while held >= ROW:
            yield Piece(number, tuple(names), skip, ROW, held == ROW)
            number, held = number + 1, held - ROW
            names, skip = ([name], kept - held) if held else ([], 0)
    if names:
        yield Piece(number, tuple(names), skip, held, True)
