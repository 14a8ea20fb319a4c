"""Activation checkpointing: a block keeps only its input and is computed again when going back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_blocks(module: nn.Module) -> int:
    """Make each block of a network forget its activations; return the number of blocks.

    Blocks are the composite members of the network's outermost lists and sequences. Results do not
    change; the second computation does not count in the statistics of batch norms.
    """
    found = list(_blocks(module))
    for block in found:
        block.forward = partial(  # type: ignore[method-assign]
            checkpoint,
            block.forward,
            use_reentrant=False,
            context_fn=partial(_contexts, block),
        )
    return len(found)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from (member for member in child if any(member.children()))
        else:
            yield from _blocks(child)


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second computation."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Normalize batches as in training, but leave the running statistics unchanged."""
    norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
    held = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
