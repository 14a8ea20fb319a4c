"""Making the identity bank on Ray: actors draw candidates, the driver judges them in order."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from factory.cluster import hardware
from factory.cluster.workers import ActorPool, flow
from factory.datasets.store import Store
from factory.generation.identities import Bank, empty_bank, extend, load_bank, save_block
from factory.nodes import makers
from factory.recipe import FaultError, GenerateRecipe, bank_digest, parse
from factory.systems import create

BANK_BLOCK = 64  # candidates that a task draws; fixed, because batch size changes last bits
COMMIT_BLOCKS = 32  # blocks between two commits of a bank; fixed, so that files have fixed names
DRAWS_PER_IDENTITY = 50  # give up after so many candidates for each wanted identity


class BankActor:
    """Draws blocks of candidate contexts."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        """Load the system once."""
        parsed = parse(recipe)
        assert isinstance(parsed, GenerateRecipe)
        hardware.set_up(parsed.workers.threads, parsed.workers.num_gpus > 0)
        self.system = create(parsed)
        self.system.load()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Draw the candidates of one block: float32 [BANK_BLOCK, D]."""
        (block,) = batch["block"]
        indices = range(int(block) * BANK_BLOCK, (int(block) + 1) * BANK_BLOCK)
        return {"block": batch["block"], "contexts": self.system.draw_contexts(indices)[None]}


def fill_bank(
    recipe: GenerateRecipe,
    store: Store,
    say: Callable[[str], None],
    check_lock: Callable[[], None] = lambda: None,
) -> Bank:
    """Extend the identity bank to the recipe's number of identities, and commit the new ones.

    Blocks of candidates are drawn in parallel and judged in order, so that the bank does not depend
    on the number of actors. Identities that are committed already stay as they are. New ones are
    committed after every `COMMIT_BLOCKS` blocks.

    Args:
        recipe: a recipe of a system that has a bank.
        store: the dataset's folder, locked by the caller.
        say: receives one line of progress at a time.
        check_lock: is called before each commit; it raises if another writer took the folder.

    Raises:
        InputError: weights are missing on a worker's node, or are not those of the recipe.
        FaultError: `identities.max_cosine` leaves too few candidates, or a store failed.
    """
    digest = bank_digest(recipe)
    bank = load_bank(store, digest)
    wanted, start = recipe.identities.count, 0 if bank is None else len(bank)
    workers, raw = recipe.workers, recipe.model_dump(mode="json")
    while bank is None or len(bank) < wanted:
        drawn, have = (0, 0) if bank is None else (bank.drawn, len(bank))
        if drawn > DRAWS_PER_IDENTITY * wanted:
            raise FaultError(
                f"identities.max_cosine {recipe.identities.max_cosine} kept {have} of {drawn} "
                f"candidates, {wanted} identities are wanted; raise it or lower identities.count"
            )
        rate = max(have / drawn, 0.2) if drawn else 0.9
        first = drawn // BANK_BLOCK
        blocks = max(math.ceil((wanted - have) / rate / BANK_BLOCK), 1)
        rows = ({"block": first + n} for n in range(blocks))
        reserved = makers(workers, blocks)
        least = min(workers.least, reserved.size)
        pool = ActorPool("Bank", BankActor, (raw,), reserved, least, workers.threads)
        made = flow(rows, [pool], f"output {store.url}: ")
        for candidate, contexts in _in_order(made, first):
            if bank is None:
                bank = empty_bank(contexts.shape[1])
            if len(bank) == wanted:
                continue  # the actors still finish the blocks that they were given
            fresh = contexts[max(bank.drawn - candidate, 0) :]
            bank = extend(bank, fresh, wanted, recipe.identities.max_cosine)
            say(f"identity bank: {len(bank)} of {wanted} identities from {bank.drawn} candidates")
            whole = bank.drawn % (COMMIT_BLOCKS * BANK_BLOCK) == 0 or len(bank) == wanted
            if whole and len(bank) > start:
                check_lock()
                save_block(store, bank, start, digest)
                start = len(bank)
    return bank


def _in_order(rows: Iterable[dict[str, Any]], first: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first candidate, contexts) for each run of blocks between two commits, in order.

    Args:
        rows: one row for each block, in any order.
        first: the lowest number of a block; the others follow it without a gap.
    """
    early: dict[int, np.ndarray] = {}
    ready: list[np.ndarray] = []
    start = due = first
    for row in rows:
        early[int(row["block"])] = np.asarray(row["contexts"]).astype(np.float32)
        while due in early:
            ready.append(early.pop(due))
            due += 1
            if due % COMMIT_BLOCKS == 0:
                yield start * BANK_BLOCK, np.concatenate(ready)
                start, ready = due, []
    if ready:
        yield start * BANK_BLOCK, np.concatenate(ready)
