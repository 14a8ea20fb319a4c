"""Faults inside a training step, with messages that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from factory.recipe import FaultError, FRRecipe, TrainRecipe
from factory.training.engines import NotFiniteError
from factory.training.workers import lower

SHOWN = 8
NO_MEMORY = ("can't allocate memory", "not enough memory")  # messages of torch's CPU allocator


@contextmanager
def explained(recipe: TrainRecipe | FRRecipe, step: int, batch: Any) -> Iterator[None]:
    """Turn an error inside a step into a FaultError that names the step and its batch.

    Args:
        recipe: the recipe of the training.
        step: the step, from 0.
        batch: its batch; if it has `keys`, the message names the samples.
    """
    try:
        yield
    except NotFiniteError as error:
        raise FaultError(
            f"step {step}: {error}; lower optimizer.lr or set optimizer.clip_norm, the last "
            f"checkpoint is sound. {_members(batch)}"
        ) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise FaultError(f"step {step}: out of memory; {lower(recipe)}") from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in NO_MEMORY):
            raise
        raise FaultError(f"step {step}: out of memory; {lower(recipe)}") from error


def _members(batch: Any) -> str:
    keys = getattr(batch, "keys", None)
    if keys is None:
        return f"The batch is the {type(batch).__name__} of this step."
    shown = [key.decode() if isinstance(key, bytes) else key for key in keys[:SHOWN]]
    return f"Keys of the batch: {', '.join(shown)}{', ...' if len(keys) > SHOWN else ''}"
