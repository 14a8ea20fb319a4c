"""The identity bank on workers: the same however it was drawn, and kept as it grows."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factory.datasets.store import Store
from factory.generation import bank
from factory.generation.bank import BANK_BLOCK, fill_bank
from factory.recipe import FaultError, GenerateRecipe, load
from factory.systems.contexts import uniform

IDIFF = Path(__file__).parents[2] / "jobs/recipes/desk/generate/idiff_face.yaml"
FLOAT32 = "sampler.dtype=float32"


def test_a_bank_is_committed_as_it_grows_and_is_the_same_however_it_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank, "COMMIT_BLOCKS", 2)
    recipe = load(IDIFF, [FLOAT32, "identities.count=300", "identities.max_cosine=0.6"])
    assert isinstance(recipe, GenerateRecipe)
    left = [10**6]

    def drawn(rows: Iterable[dict[str, Any]], *_: Any) -> Iterator[dict[str, Any]]:
        blocks = np.array([row["block"] for row in rows])
        late = np.random.default_rng(3).uniform(0, 3, len(blocks))
        for block in blocks[np.argsort(blocks + late)]:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            indices = range(block * BANK_BLOCK, (block + 1) * BANK_BLOCK)
            yield {"block": block, "contexts": uniform(9, indices, 16)}

    monkeypatch.setattr(bank, "flow", drawn)
    whole = fill_bank(recipe, Store(tmp_path / "whole"), lambda line: None)
    kept, rows = np.zeros((0, 16), np.float32), []
    candidates = uniform(9, range(whole.drawn), 16)
    for row, candidate in enumerate(candidates):  # one after another, as they are numbered
        if not len(kept) or (kept @ candidate).max() <= 0.6:
            kept, rows = np.concatenate([kept, candidate[None]]), [*rows, row]
    assert len(rows) == 300 and rows[-1] == whole.drawn - 1
    assert whole.candidates.tolist() == rows and (whole.contexts == kept).all()
    assert whole.reasons == {"identity_collision": whole.drawn - 300}

    store, saved = Store(tmp_path / "killed"), [0]
    while True:
        left[0] = 4 * len(saved)
        try:
            again = fill_bank(recipe, store, lambda line: None)
            break
        except KeyboardInterrupt:
            saved.append(len(sorted(store.list("bank"))))
    assert saved == sorted(saved) and len(set(saved)) > 2  # what a kill left is kept
    files = {name: store.read(name) for name in store.list("bank")}
    assert files == {name: Store(tmp_path / "whole").read(name) for name in files}
    assert sorted(files) == sorted(Store(tmp_path / "whole").list("bank"))
    assert (again.contexts == whole.contexts).all() and again.drawn == whole.drawn


def test_a_bank_of_a_folder_that_another_took_over_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, store = load(IDIFF, [FLOAT32, "identities.count=5"]), Store(tmp_path)
    assert isinstance(recipe, GenerateRecipe)
    row = {"block": 0, "contexts": uniform(9, range(BANK_BLOCK), 512)}
    monkeypatch.setattr(bank, "flow", lambda *_: iter([row]))

    def check_lock() -> None:
        raise FaultError("another writer")

    with pytest.raises(FaultError, match="another writer"):
        fill_bank(recipe, store, lambda line: None, check_lock)
    assert list(store.list()) == []
