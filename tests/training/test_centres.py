"""Sharded class centres give the loss, gradients and state of unsharded ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from together import BATCH, CPU, engine_recipe, in_turn, run_centres, together

from factory.recipe import InputError
from factory.recognition.margins import Margin
from factory.training.centres import Centres

MARGINS = ("arcface", "adaface")


def states(folder: Path, name: str, rate: float, world: int) -> list[dict]:
    return [
        torch.load(folder / f"{name}-{rate}-{world}-{rank}", weights_only=True)
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """Return where the states lie, and by margin what each of two workers found."""
    folder = tmp_path_factory.mktemp("centres")
    calls = [(run_centres, (name, 1.0, str(folder))) for name in MARGINS]
    found = together(2, in_turn, folder, calls)
    return folder, dict(zip(MARGINS, zip(*found, strict=True), strict=True))


@pytest.mark.parametrize("name", MARGINS)
def test_sharded_over_two_equals_unsharded(
    sharded: tuple[Path, dict[str, list[Any]]], name: str
) -> None:
    folder, found = sharded
    whole, halves = run_centres(0, 1, name, 1.0, str(folder)), found[name]
    for half in halves:
        assert half["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    joined = torch.cat([half["gradients"] for half in halves], dim=1)
    assert torch.allclose(joined, whole["gradients"], atol=1e-6, rtol=1e-4)
    (one,), two = states(folder, name, 1.0, 1), states(folder, name, 1.0, 2)
    assert [part["first"] for part in two] == [0, 5]
    assert torch.allclose(torch.cat([p["weights"] for p in two]), one["weights"], atol=1e-6)
    buffer = torch.cat([part["moments"]["momentum_buffer"] for part in two])
    assert torch.allclose(buffer, one["moments"]["momentum_buffer"], atol=1e-6)


def test_unsharded_is_torchs_cross_entropy_and_optimizer() -> None:
    recipe = engine_recipe()
    centres = Centres(recipe, 11, CPU)
    weights = torch.nn.Parameter(centres.weights.clone())
    options = recipe.optimizer
    optimizer = torch.optim.SGD(
        [weights], 0.1, momentum=options.momentum, weight_decay=options.weight_decay
    )
    margin = Margin(recipe.head)
    for step in range(3):
        embeddings, labels = torch.randn(BATCH, 8), torch.randint(0, 11, (BATCH,))
        centres.sample(step, labels)
        loss = centres.loss(embeddings, labels)
        loss.backward()
        centres.step(0.1)
        theirs = torch.nn.functional.cross_entropy(margin(embeddings, weights, labels), labels)
        optimizer.zero_grad()
        theirs.backward()
        torch.nn.utils.clip_grad_norm_([weights], options.clip_norm)
        optimizer.step()
        assert loss.item() == pytest.approx(theirs.item())
    assert torch.allclose(centres.weights, weights, atol=1e-6)


def test_what_two_saved_one_or_three_load() -> None:
    recipe = engine_recipe()
    whole = Centres(recipe, 11, CPU)
    parts = [Centres(recipe, 11, CPU, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([part.weights for part in parts]), whole.weights)
    for part in parts:
        part.weights = part.weights + 1.0
        part.moments = {"momentum_buffer": part.weights * 2}
    saved = [part.state() for part in parts]
    for world in (1, 3):
        loaded = [Centres(recipe, 11, CPU, rank, world) for rank in range(world)]
        for part in loaded:
            part.restore(saved[::-1])
        assert torch.equal(torch.cat([part.weights for part in loaded]), whole.weights + 1.0)
        moments = torch.cat([part.moments["momentum_buffer"] for part in loaded])
        assert torch.equal(moments, 2 * (whole.weights + 1.0))


def test_a_sample_holds_the_batch_and_moves_nothing_else() -> None:
    recipe = engine_recipe()
    head = recipe.head.model_copy(update={"sample_rate": 0.3})
    recipe = recipe.model_copy(update={"head": head})
    centres, seen = Centres(recipe, 60, CPU), set()
    for step in range(4):
        before = centres.weights.clone()
        labels = torch.tensor([step, 50, 50, 7])
        centres.sample(step, labels)
        assert isinstance(centres.rows, torch.Tensor)
        rows = set(centres.rows.tolist())
        assert {step, 50, 7} <= rows and len(rows) == 18
        seen |= rows
        centres.loss(torch.randn(4, 8), labels).backward()
        centres.step(0.1)
        moved = (centres.weights != before).any(dim=1).nonzero()[:, 0].tolist()
        assert set(moved) <= rows and set(labels.tolist()) <= set(moved)
    assert len(seen) > 30
    again = Centres(recipe, 60, CPU)
    again.sample(3, labels)
    assert again.rows.tolist() == centres.rows.tolist()  # type: ignore[union-attr]


def test_more_workers_than_identities_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"engine\.workers: 3; with 2 identities it must be 1 to 2"
    ):
        Centres(engine_recipe(), 2, CPU, 0, 3)
