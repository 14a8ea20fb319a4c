"""What ends a training is one message that says what to do."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from together import engine_recipe

from factory.recipe import FaultError
from factory.training.engines import NotFiniteError
from factory.training.faults import explained
from factory.training.workers import lower


@dataclass
class Keyed:
    keys: tuple[str, ...] | np.ndarray


def test_a_batch_that_diverged_is_named_by_step_and_keys() -> None:
    batch = Keyed(tuple(f"key{n}" for n in range(20)))
    with (
        pytest.raises(FaultError, match=r"step 7: the loss is nan.*Keys of the batch: key0, key1"),
        explained(engine_recipe(), 7, batch),
    ):
        raise NotFiniteError("the loss is nan")
    with (
        pytest.raises(FaultError, match=r"Keys of the batch: id4, id9$"),
        explained(engine_recipe(), 7, Keyed(np.array([b"id4", b"id9"]))),
    ):
        raise NotFiniteError("the loss is nan")


def test_memory_that_is_too_small_says_what_to_lower() -> None:
    advice = (
        r"step 3: out of memory; raise engine\.deepspeed\.accumulation_steps \(1\), set "
        r"engine\.deepspeed\.activation_checkpointing, raise engine\.deepspeed\.zero_stage \(1\), "
        r"or lower schedule\.batch_size \(8\)"
    )
    with (
        pytest.raises(FaultError, match=advice),
        explained(engine_recipe(), 3, None),
    ):
        torch.empty(10**15)  # torch's own words
    with (
        pytest.raises(FaultError, match="out of memory"),
        explained(engine_recipe(), 3, None),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_is_neither_passes() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained(engine_recipe(), 3, None):
        raise RuntimeError("shapes do not fit")


def test_advice_leaves_out_what_is_on_already() -> None:
    deepspeed = {"zero_stage": 3, "activation_checkpointing": True, "accumulation_steps": 4}
    assert lower(engine_recipe(num_gpus=1, deepspeed=deepspeed)) == (
        "raise engine.deepspeed.accumulation_steps (4), set engine.deepspeed.offload, or lower "
        "schedule.batch_size (8)"
    )
