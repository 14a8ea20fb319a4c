"""The identity bank of a dataset: contexts packed apart and kept.

A bank is a dataset of its own: parquet blocks that are never edited, each with a manifest written
last. Candidates are judged in the order of their numbers, so that a longer bank begins with every
shorter one and a dataset grows against frozen identities.
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
    """Keep the candidates that stay apart, walking in order (greedy r-ball packing, DCFace 4.2).

    Args:
        candidates: float32 [n, D] unit vectors; one that is not finite is near to all.
        kept: float32 [m, D] unit vectors kept earlier; they are never dropped.
        max_cosine: a candidate closer than this to any vector kept before it is dropped.

    Returns:
        int64 [k], rows of the candidates that were kept, in order.
    """
    finite = np.flatnonzero(np.isfinite(candidates).all(axis=1))
    if max_cosine >= 1.0:  # nothing is closer
        return finite
    equal_kept = float(np.nextafter(max_cosine, 2.0))
    return finite[packed(candidates[finite], equal_kept, earlier=kept)]


@dataclass
class Bank:
    """The contexts of a dataset, in identity order.

    Attributes:
        contexts: float32 [n, D] unit vectors; row i is identity i.
        candidates: int64 [n], the candidate number each identity came from.
        drawn: how many candidates have been judged.
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
    """Judge the next candidates in order, up to `count` identities; returns the longer bank.

    `count` must be more than the bank already has.
    """
    kept = apart(candidates, bank.contexts, max_cosine)[: count - len(bank)]
    full = len(bank) + len(kept) == count  # what follows the last kept one was not needed
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
    """Commit identities [start, len(bank)) as one block of the bank, its manifest last."""
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
    """Read the bank of a dataset; None where no block was committed.

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
                f"bank {name}: digest {manifest['bank_digest']}, accepted is {bank_digest}: "
                "the folder holds the identities of another recipe"
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
