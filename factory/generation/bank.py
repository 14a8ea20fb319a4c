"""The identity bank on Ray: a pool draws candidates, which are judged in order and kept."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from factory.cluster import hardware
from factory.cluster.capacity import makers
from factory.cluster.workers import ActorPool, flow
from factory.datasets.store import Store
from factory.generation.identities import Bank, empty_bank, extend, load_bank, save_block
from factory.recipe import FaultError, GenerateRecipe, bank_digest, parse
from factory.systems import create

BANK_BLOCK = 64  # candidates one task draws; fixed, since batch size changes last bits
COMMIT_BLOCKS = 32  # drawn between two commits of a bank; fixed, so that its files have fixed names
DRAWS_PER_IDENTITY = 50  # a bank that rejects more than this is asked for what there is not


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
    """Make the identity bank as long as the recipe asks for, and commit what is new.

    Blocks of candidates are drawn in parallel and judged in order, so that the bank does not depend
    on how many actors drew it. Identities that were committed before stay as they are, and those of
    every `COMMIT_BLOCKS` are committed before the next are judged.

    Args:
        recipe: what to make.
        store: the dataset's folder, locked by the caller.
        say: receives one line of progress at a time.
        check_lock: called before each commit; it raises where the folder is another writer's.

    Raises:
        InputError: weights are not on a worker's node, or not what they should be.
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
                continue  # the pool ends what it was handed
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
    """Yield the blocks that were drawn, joined up to the next commit, and their first candidate.

    Args:
        rows: one a block, in any order.
        first: the lowest block among them; the others follow it without a gap.
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
