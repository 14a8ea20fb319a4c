"""Margin losses over class centres: CosFace, ArcFace and AdaFace.

They work on cosines in float32, because a margin of 0.4 at scale 64 needs more than bfloat16's
eight bits. They return logits for a plain cross entropy.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from factory.recipe import Head

NEAR_ONE = 1e-4  # cosines stay this far inside [-1, 1], where arccos has a finite slope
NORM_MOMENTUM = 0.99  # AdaFace's moving average of the norm statistics, equation 14


class Margin(nn.Module):
    """A margin over class centres: it maps raw embeddings and labels to logits.

    It has no parameters. AdaFace's running statistics of norms are buffers. They stay equal on all
    workers only if each worker passes the embeddings of the whole batch.

    Args:
        head: name, scale s, margin m and AdaFace's h.
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        if head.name == "adaface":
            self.register_buffer("norm_mean", torch.tensor(20.0))
            self.register_buffer("norm_std", torch.tensor(100.0))

    def forward(self, embeddings: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
        """Return logits [B, C] float32; the margin reduces the true class's logit.

        Args:
            embeddings: [B, D], not normalised.
            centres: [C, D], not normalised.
            labels: [B] int64 in [0, C), or -1 if the true class is not among the centres.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            cosines = functional.normalize(embeddings) @ functional.normalize(centres.float()).T
            cosines = cosines.clamp(-1.0, 1.0)
            rows = (labels >= 0).nonzero()[:, 0]
            own = labels[rows, None]
            cosine = cosines[rows].gather(1, own)
            if self.head.name == "cosface":
                target = cosface(cosine, self.head.margin)
            elif self.head.name == "arcface":
                target = arcface(cosine, self.head.margin)
            else:
                quality = self._quality(embeddings.detach().norm(dim=1, keepdim=True))
                target = adaface(cosine, self.head.margin, quality[rows])
            return self.head.scale * cosines.index_put((rows, own[:, 0]), target[:, 0])

    def _quality(self, norms: Tensor) -> Tensor:
        """Return the quality in [-1, 1]: the norm's z-score times h (AdaFace, equation 14)."""
        norms = norms.clamp(0.001, 100.0)
        if self.training and len(norms) > 1:
            self.norm_mean.lerp_(norms.mean(), 1.0 - NORM_MOMENTUM)
            self.norm_std.lerp_(norms.std(), 1.0 - NORM_MOMENTUM)
        return ((norms - self.norm_mean) / (self.norm_std + 1e-3) * self.head.h).clamp(-1.0, 1.0)


def cosface(cosines: Tensor, margin: float) -> Tensor:
    """Return cos(theta) - m (CosFace, Wang et al. 2018, equation 4)."""
    return cosines - margin


def arcface(cosines: Tensor, margin: float) -> Tensor:
    """Return cos(theta + m) (ArcFace, Deng et al. 2019, equation 3).

    Beyond theta + m = pi this cosine would rise again. There the result is cos(theta) - m sin(m),
    which keeps falling.
    """
    inside = cosines.clamp(-1.0 + NEAR_ONE, 1.0 - NEAR_ONE)
    moved = torch.cos(torch.acos(inside) + margin)
    beyond = cosines < math.cos(math.pi - margin)
    return torch.where(beyond, cosines - margin * math.sin(margin), moved)


def adaface(cosines: Tensor, margin: float, quality: Tensor) -> Tensor:
    """Return cos(theta - m q) - (m q + m) (AdaFace, Kim et al. 2022, equation 15).

    Args:
        cosines: [B, 1], the cosine of each embedding to its own centre.
        margin: m.
        quality: q, [B, 1] in [-1, 1]; -1 gives ArcFace's angle, 0 gives CosFace's margin.
    """
    angles = torch.acos(cosines.clamp(-1.0 + NEAR_ONE, 1.0 - NEAR_ONE))
    moved = (angles - margin * quality).clamp(NEAR_ONE, math.pi - NEAR_ONE)
    return torch.cos(moved) - (margin * quality + margin)
