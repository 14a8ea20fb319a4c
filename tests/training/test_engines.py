"""Every way to divide a training takes the steps that torch takes alone, and can be resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from together import (
    CPU,
    agree,
    count_bytes,
    engine_recipe,
    in_turn,
    meet_nan,
    network,
    precision_of,
    run_engines,
    steps,
    together,
)

from factory.recipe import InputError
from factory.training.engines import check_engine, make_engine, micro_batches, unmoved

STEPS = 3


def zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"deepspeed": {"zero_stage": stage, **more}}


FAST = {
    "zero-0 sgd": ("sgd", zero(0)),
    "zero-1 sgd": ("sgd", zero(1)),
    "zero-2 adamw, accumulated, recomputed": (
        "adamw",
        zero(2, accumulation_steps=2, activation_checkpointing=True),
    ),
    "zero-3 adamw": ("adamw", zero(3)),
    "zero-1 adamw, offloaded": ("adamw", zero(1, offload=True)),
    "zero-1 adamw, bfloat16": ("adamw", zero(1) | {"precision": "bfloat16"}),
}
SLOW = {
    "zero-0 adamw, bfloat16": ("adamw", zero(0) | {"precision": "bfloat16"}),
    "zero-2 sgd": ("sgd", zero(2)),
    "zero-3 sgd, accumulated, recomputed": (
        "sgd",
        zero(3, accumulation_steps=4, activation_checkpointing=True),
    ),
    "zero-3 adamw, bfloat16, offloaded": (
        "adamw",
        zero(3, offload=True) | {"precision": "bfloat16"},
    ),
    "zero-2 adamw, offloaded": ("adamw", zero(2, offload=True)),
}


def alone(optimizer: str, precision: str) -> tuple[list[float], Any, dict[str, Any], list[float]]:
    """Return losses of 2 x STEPS, the average and state after STEPS, and norms: plain torch."""
    recipe = engine_recipe(optimizer, name="torch", precision=precision)
    engine = make_engine(recipe, network(), CPU)
    losses, average, norms = steps(engine, 0, STEPS)
    state = {
        "module": {name: value.clone() for name, value in engine.state()["module"].items()},
        "optimizer": torch.load(_saved(engine.state()["optimizer"]), weights_only=True),
    }
    whole = {name: value.clone() for name, value in average.state.items()}
    later, *_ = steps(engine, STEPS, 2 * STEPS)
    return losses + later, whole, state, norms


def _saved(state: Any) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def compare(cases: dict[str, tuple[str, dict[str, Any]]], known: Any, results: list[Any]) -> None:
    for name, (optimizer, settings) in cases.items():
        precision = precision_of(settings)
        losses, average, state, norms = known[optimizer, precision]
        near = 0.03 if precision == "bfloat16" else 1e-4
        for found in (result[name] for result in results):
            assert found["losses"] == pytest.approx(losses[:STEPS], rel=near), name
            assert found["later"] == pytest.approx(losses[STEPS:], rel=near), name
            assert found["norms"] == pytest.approx(norms, rel=near), name
            for key, value in average.items():
                assert torch.allclose(found["average"][key], value, atol=near), name
            model = network()
            model.load_state_dict(found["average"])
            assert found["shown"].shape == (8, 1)
        for number, kept in state["optimizer"]["state"].items():
            theirs = results[0][name]["state"]["optimizer"]["state"][number]
            assert kept.keys() == theirs.keys(), name
            for key in kept:
                assert torch.allclose(kept[key], theirs[key].to(kept[key]), atol=near), name
        recipe = engine_recipe(optimizer, name="torch", precision=precision)
        resumed = make_engine(recipe, network(), CPU, results[0][name]["state"])
        later, *_ = steps(resumed, STEPS, 2 * STEPS)
        assert later == pytest.approx(losses[STEPS:], rel=near), name


def begun(cases: dict[str, tuple[str, dict[str, Any]]], folder: Path) -> tuple[Any, Path]:
    """Return what torch alone finds, by optimizer and precision, and a file of its states."""
    kinds = {(optimizer, precision_of(settings)) for optimizer, settings in cases.values()}
    known = {kind: alone(*kind) for kind in sorted(kinds)}
    torch.save({kind: state for kind, (_, _, state, _) in known.items()}, folder / "start")
    return known, folder / "start"


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """Return what torch alone finds, and what two workers did: FAST, a NaN, an agreement."""
    folder = tmp_path_factory.mktemp("fast")
    known, start = begun(FAST, folder)
    calls = [(run_engines, (FAST, start, STEPS)), (meet_nan, ()), (agree, (folder,))]
    return known, together(2, in_turn, folder, calls)


def test_two_workers_take_the_steps_of_one_and_each_resumes_the_other(fast) -> None:
    known, found = fast
    compare(FAST, known, [results for results, *_ in found])


@pytest.mark.slow
def test_every_other_way_to_divide_a_training(tmp_path: Path) -> None:
    known, start = begun(SLOW, tmp_path)
    compare(SLOW, known, together(2, run_engines, tmp_path, SLOW, start, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_worker_holds_and_sends_what_docs_scaling_says(tmp_path: Path, stage: int) -> None:
    for found in together(2, count_bytes, tmp_path, stage):
        weights = 4 * found["parameters"]
        assert found["optimizer"] == pytest.approx(2 * weights / 2, rel=0.01)
        assert found["held"] == pytest.approx(weights / 2 if stage == 3 else weights, rel=0.01)
        if stage < 3:
            assert found["all_reduce"] == weights + 4  # and the loss
            assert found["all_gather"] == pytest.approx(weights, rel=0.01)


def test_a_fused_optimizer_counts_steps_where_its_parameters_are() -> None:
    one = {"step": torch.tensor(7.0), "exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(5)}
    here, there = (unmoved(one, torch.empty(3, device=device)) for device in ("cpu", "meta"))
    assert {name: value.device.type for name, value in there.items()} == dict.fromkeys(one, "meta")
    assert here["step"] == 7.0 and here["step"].data_ptr() != one["step"].data_ptr()
    assert all(torch.equal(here[name], torch.zeros(3)) for name in ("exp_avg", "exp_avg_sq"))


def test_torch_accumulates_and_recomputes_too() -> None:
    whole, *_ = alone("adamw", "float32")
    settings = zero(1, accumulation_steps=4, activation_checkpointing=True)
    engine = make_engine(engine_recipe("adamw", name="torch", **settings), network(), CPU)
    losses, *_ = steps(engine, 0, 2 * STEPS)
    assert losses == pytest.approx(whole, rel=1e-4)


def test_weights_stay_when_the_loss_is_not_finite() -> None:
    engine = make_engine(engine_recipe(name="torch"), network(), CPU)
    before = [p.detach().clone() for p in engine.module.parameters()]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ArithmeticError, match="the loss is"):
            engine.step([1], lambda _: sum(p.sum() for p in engine.module.parameters()) * bad, 0.1)  # type: ignore[return-value]  # noqa: B023
    assert all(torch.equal(*pair) for pair in zip(before, engine.module.parameters(), strict=True))


def test_weights_stay_when_the_gradient_of_zero_0_is_not_finite(fast) -> None:
    for _, (message, stayed), _ in fast[1]:
        assert message == "the gradient's norm is nan" and stayed


def test_workers_continue_from_the_checkpoint_that_the_first_one_sees(fast) -> None:
    assert [agreed for *_, agreed in fast[1]] == [8, 8]


def test_micro_batches_cut_all_that_is_in_a_batch() -> None:
    batch = (torch.arange(6), {"a": torch.arange(12).view(6, 2)}, [None, "name"])
    first, second, third = micro_batches(batch, 3)
    assert first[0].tolist() == [0, 1] and third[1]["a"].tolist() == [[8, 9], [10, 11]]
    assert second[2] == [None, "name"]
    assert micro_batches(batch, 1) == [batch]


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(InputError, match=r"batch_size: 8; accepted are multiples of 6"):
        check_engine(engine_recipe(workers=2, **zero(1, accumulation_steps=3)))
