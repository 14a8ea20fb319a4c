"""The identity bank of a dataset: contexts that are kept apart from each other.

A bank consists of parquet blocks that are never edited; the manifest of a block is written last.
Candidates are judged in the order of their numbers. A longer bank therefore begins with any shorter
one, and the identities of a dataset stay as they are when it grows.
"""

import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from factory.datasets.store import Store
from factory.recipe import InputError
from factory.recognition.neighbours import packed

COLLISION = "identity_collision"


def apart(candidates: np.ndarray, kept: np.ndarray, max_cosine: float) -> np.ndarray:
    """Keep candidates that are apart from all kept ones (greedy r-ball packing, DCFace 4.2).

    Args:
        candidates: float32 [n, D] unit vectors, taken in order; those that are not finite are
            dropped.
        kept: float32 [m, D] unit vectors that were kept earlier; they are never dropped.
        max_cosine: a candidate is dropped if its cosine to a vector kept before exceeds this.

    Returns:
        int64 [k], rows of the kept candidates, in order.
    """
    finite = np.flatnonzero(np.isfinite(candidates).all(axis=1))
    if max_cosine >= 1.0:  # no cosine exceeds 1
        return finite
    equal_kept = float(np.nextafter(max_cosine, 2.0))
    return finite[packed(candidates[finite], equal_kept, earlier=kept)]


@dataclass
class Bank:
    """The contexts of a dataset, in identity order.

    Attributes:
        contexts: float32 [n, D] unit vectors; row i is identity i.
        candidates: int64 [n], the number of the candidate that became each identity.
        drawn: how many candidates were judged.
        reasons: how many of them were dropped, by reason.
    """

    contexts: np.ndarray
    candidates: np.ndarray
    drawn: int
    reasons: dict[str, int]

    def __len__(self) -> int:
        """Return the number of identities."""
        return len(self.contexts)


def empty_bank(dimension: int) -> Bank:
    """Return a bank of no identities."""
    return Bank(np.zeros((0, dimension), np.float32), np.zeros(0, np.int64), 0, {COLLISION: 0})


def extend(bank: Bank, candidates: np.ndarray, count: int, max_cosine: float) -> Bank:
    """Judge the next candidates in order until there are `count` identities; return the new bank.

    `count` must be larger than the bank's number of identities.
    """
    kept = apart(candidates, bank.contexts, max_cosine)[: count - len(bank)]
    full = len(bank) + len(kept) == count  # candidates after the last kept one are not judged
    judged = int(kept[-1]) + 1 if full else len(candidates)
    reasons = dict(bank.reasons)
    reasons[COLLISION] += judged - len(kept)
    return Bank(
        np.concatenate([bank.contexts, candidates[kept]]),
        np.concatenate([bank.candidates, bank.drawn + kept]),
        bank.drawn + judged,
        reasons,
    )


def save_block(store: Store, bank: Bank, start: int, bank_digest: str) -> str:
    """Commit identities [start, len(bank)) as one block; the block's manifest is written last."""
    name = f"bank/i{start:07d}-{len(bank):07d}"
    table = pa.table(
        {
            "identity": np.arange(start, len(bank), dtype=np.int64),
            "candidate": bank.candidates[start:],
            "context": pa.FixedSizeListArray.from_arrays(
                pa.array(bank.contexts[start:].ravel()), bank.contexts.shape[1]
            ),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    block = sink.getvalue()
    store.write(f"{name}.parquet", block)
    manifest = {
        "bank_digest": bank_digest,
        "drawn": bank.drawn,
        "reasons": bank.reasons,
        "sha256": hashlib.sha256(block).hexdigest(),
    }
    store.write(f"{name}.json", json.dumps(manifest, sort_keys=True).encode())
    return name


def load_bank(store: Store, bank_digest: str) -> Bank | None:
    """Read the bank of a dataset; None if no block is committed.

    Raises:
        InputError: the folder holds a bank of another recipe.
    """
    names = sorted(name for name in store.list("bank") if name.endswith(".json"))
    if not names:
        return None
    contexts, candidates = [], []
    manifest: dict = {}
    for name in names:
        manifest = json.loads(store.read(name))
        if manifest["bank_digest"] != bank_digest:
            raise InputError(
                f"bank {name}: the folder holds the identities of another recipe (digest "
                f"{manifest['bank_digest']} there, {bank_digest} here)"
            )
        table = pq.read_table(io.BytesIO(store.read(name.removesuffix("json") + "parquet")))
        column = table["context"].combine_chunks()
        contexts.append(
            np.asarray(column.flatten(), np.float32).reshape(len(table), column.type.list_size)
        )
        candidates.append(np.asarray(table["candidate"]))
    return Bank(
        np.concatenate(contexts), np.concatenate(candidates), manifest["drawn"], manifest["reasons"]
    )
