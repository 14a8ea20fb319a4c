"""Class centres, divided among the workers; a step may sample a part of them (Partial FC).

An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs
by Partial FC" (CVPR 2022; docs/papers.md 5). Each worker owns a range of identities. A step gathers
the embeddings of all workers, compares them with each worker's own centres, and takes the softmax
over all centres. Centres and their optimizer are outside the engine, because they are neither
replicated nor averaged.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from factory.recipe import FRRecipe, InputError
from factory.recognition.margins import Margin
from factory.seeding import generator, seed64
from factory.training.engines import NotFiniteError, make_optimizer

BLOCK = 1024  # identities whose first centres are drawn together, for any number of workers
SPREAD = 0.01  # standard deviation of a centre's elements at the start


class Centres:
    """One worker's range of class centres, with the margin loss and the optimizer over them.

    Args:
        recipe: states head, optimizer and seed.
        classes: number of identities of all workers.
        device: the device of the centres.
        rank: this worker's number.
        world: number of workers; with more than one, torch.distributed is initialised.

    Raises:
        InputError: there are fewer identities than workers.
    """

    def __init__(
        self, recipe: FRRecipe, classes: int, device: torch.device, rank: int = 0, world: int = 1
    ) -> None:
        if classes < world:
            raise InputError(
                f"recipe field engine.workers: {world}; with {classes} identities it must be 1 to "
                f"{classes}, since each worker holds a part of them"
            )
        self.recipe, self.rank, self.world = recipe, rank, world
        self.first, self.end = (classes * part // world for part in (rank, rank + 1))
        self.margin = Margin(recipe.head).to(device)
        self.weights = self._drawn(recipe.backbone.embedding_size).to(device)
        self.moments: dict[str, Tensor] = {}  # optimizer state: a row for each centre, or a number
        self.rows: Tensor | slice = slice(None)
        self.sampled = nn.Parameter(self.weights)

    def _drawn(self, dimension: int) -> Tensor:
        blocks = []
        for start in range(self.first - self.first % BLOCK, self.end, BLOCK):
            draws = generator(seed64(self.recipe.seed, "centres", start))
            block = draws.standard_normal((BLOCK, dimension), np.float32)
            blocks.append(block[max(self.first - start, 0) : self.end - start])
        return torch.from_numpy(SPREAD * np.concatenate(blocks))

    def sample(self, step: int, labels: Tensor) -> None:
        """Choose the centres of a step: all, or those of the batch and random others.

        Every worker calls this.

        Args:
            step: global step, which keys the choice.
            labels: int64 [B], labels of this worker's part of the batch.
        """
        count = self.end - self.first
        wanted = round(self.recipe.head.sample_rate * count)
        if wanted < count:
            own = self._own(_gathered(labels, self.world))
            own = own[own >= 0].unique().cpu()
            draws = generator(seed64(self.recipe.seed, "sampled centres", self.first, step))
            rank = torch.from_numpy(draws.random(count))
            rank[own] = -1.0  # an identity of the batch comes first
            chosen = rank.topk(max(wanted, len(own)), largest=False).indices.sort().values
            self.rows = chosen.to(self.weights.device)
        self.sampled = nn.Parameter(self.weights[self.rows])

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over the micro-batches of all workers, float32.

        Its gradient with respect to this worker's embeddings is multiplied by `world`, because the
        engine averages gradients over workers.

        Args:
            embeddings: [B, D], raw embeddings of this worker.
            labels: int64 [B] in [0, classes).
        """
        if self.world > 1:
            embeddings = _Gather.apply(embeddings.float(), self.rank, self.world)
        targets = self._own(_gathered(labels, self.world))
        if isinstance(self.rows, Tensor):
            place = torch.searchsorted(self.rows, targets.clamp(min=0))
            targets = torch.where(targets < 0, targets, place)
        logits = self.margin(embeddings, self.sampled, targets)
        if self.world == 1:
            return nn.functional.cross_entropy(logits, targets)
        return _ShardedCrossEntropy.apply(logits, targets)

    def step(self, rate: float) -> float:
        """Take an optimizer step over the sampled centres; return their gradient's norm.

        Raises:
            NotFiniteError: the gradient is not finite.
        """
        gradient, clip = self.sampled.grad, self.recipe.optimizer.clip_norm
        assert gradient is not None
        squares = gradient.square().sum()
        if self.world > 1:
            distributed.all_reduce(squares)
        norm = squares.sqrt()
        if not torch.isfinite(norm):
            raise NotFiniteError(f"the norm of the centres' gradient is {norm.item()}")
        if clip:
            gradient.mul_((clip / (norm + 1e-6)).clamp(max=1.0))
        optimizer = make_optimizer(self.recipe.optimizer, [self.sampled])
        optimizer.param_groups[0]["lr"] = rate
        if self.moments:
            optimizer.state[self.sampled] = {
                name: value[self.rows] if value.ndim else value
                for name, value in self.moments.items()
            }
        optimizer.step()
        self._keep(optimizer.state[self.sampled])
        return norm.item()

    def _keep(self, moments: Mapping[str, Tensor]) -> None:
        if isinstance(self.rows, slice):  # all centres; the step changed them in place
            self.moments = dict(moments)
            return
        self.weights[self.rows] = self.sampled.detach()
        for name, value in moments.items():
            if value.ndim:
                held = self.moments.setdefault(name, torch.zeros_like(self.weights))
                held[self.rows] = value
            else:
                self.moments[name] = value

    def state(self) -> dict[str, Any]:
        """Return this worker's part of a checkpoint: its centres and their optimizer state."""
        return {
            "first": self.first,
            "weights": self.weights,
            "moments": self.moments,
            "margin": self.margin.state_dict(),
        }

    def restore(self, parts: list[Mapping[str, Any]]) -> None:
        """Take this worker's range from the parts of all workers, of which there may be any number.

        Args:
            parts: results of `state`, of all workers that saved the checkpoint.
        """
        parts = sorted(parts, key=lambda part: part["first"])

        def mine(values: list[Tensor]) -> Tensor:
            rows = [
                value[max(self.first - part["first"], 0) : max(self.end - part["first"], 0)]
                for part, value in zip(parts, values, strict=True)
            ]
            return torch.cat(rows).to(self.weights.device)

        self.weights = mine([part["weights"] for part in parts])
        self.moments = {  # fused optimizers need the count of steps on the weights' device
            name: mine([part["moments"][name] for part in parts])
            if value.ndim
            else value.to(self.weights.device)
            for name, value in parts[0]["moments"].items()
        }
        self.margin.load_state_dict(parts[0]["margin"])

    def _own(self, labels: Tensor) -> Tensor:
        """Return labels counted from this worker's first one; -1 for labels of other workers."""
        here = (labels >= self.first) & (labels < self.end)
        return torch.where(here, labels - self.first, -1)


class _Gather(torch.autograd.Function):
    """Gather all workers' rows; backwards, sum all workers' gradients of this worker's rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, world: int) -> Tensor:
        ctx.place = slice(rank * len(own), (rank + 1) * len(own)), world
        return _gathered(own, world)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows, world = ctx.place
        whole = gradients[0].contiguous()
        distributed.all_reduce(whole)
        return whole[rows] * world, None, None


class _ShardedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of logits whose columns are divided among the workers.

    With logits z and true class y, the loss is mean(log sum_c exp z_c - z_y) and its gradient is
    (softmax(z) - onehot(y)) / B. Workers exchange only three numbers for each row.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        highest = logits.max(dim=1, keepdim=True).values
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        shifted = logits - highest
        rows = (targets >= 0).nonzero()[:, 0]
        own = torch.zeros_like(highest[:, 0])
        own[rows] = shifted[rows, targets[rows]]
        powers = shifted.exp_()
        sums = torch.stack([powers.sum(dim=1), own])
        distributed.all_reduce(sums)
        ctx.save_for_backward(powers.div_(sums[0][:, None]), rows, targets)
        return (sums[0].log() - sums[1]).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        probabilities, rows, targets = ctx.saved_tensors
        made = probabilities.clone()
        made[rows, targets[rows]] -= 1.0
        return made * (gradients[0] / len(made)), None


def _gathered(own: Tensor, world: int) -> Tensor:
    if world == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(world)]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)
