"""Losses of denoisers and autoencoders, and changes to images that keep a teacher reliable."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factory.recipe import InputError
from factory.recognition.backbones import IResNet


def identity_cosine(teacher: nn.Module, pixels: Tensor, wanted: Tensor) -> Tensor:
    """Return the cosine of the teacher's embedding of each image to the wanted one, float [B].

    Args:
        teacher: frozen network from [B, 3, S, S] to [B, D].
        pixels: images in [-1, 1]; gradients pass through them.
        wanted: embeddings [B, D] of any length.
    """
    return F.cosine_similarity(teacher(pixels).float(), wanted.float(), dim=1)


def perceptual_loss(teacher: nn.Module, made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared distance between a recognizer's early features of two images.

    The features are those of the stem and the first two layers. They have unit length over the
    channels at each place, as in Zhang et al. 2018 (LPIPS), but all weights are one.

    Args:
        teacher: frozen IResNet.
        made: images [B, 3, S, S] in [-1, 1]; gradients pass through them.
        wanted: the images that they should look like, of the same shape.
    """
    if not isinstance(teacher, IResNet):
        raise InputError(
            f"recipe field options.perceptual: the teacher is {type(teacher).__name__}, accepted "
            "is an IResNet"
        )
    with torch.no_grad():
        targets = _features(teacher, wanted)
    distances = [
        (one - other).square().sum(dim=1).mean()
        for one, other in zip(_features(teacher, made), targets, strict=True)
    ]
    return torch.stack(distances).mean()


def _features(teacher: IResNet, pixels: Tensor) -> list[Tensor]:
    x = teacher.prelu(teacher.bn1(teacher.conv1(pixels)))
    found = [x]
    for name in ("layer1", "layer2"):
        x = teacher.get_submodule(name)(x)
        found.append(x)
    return [F.normalize(features.float(), dim=1, eps=1e-6) for features in found]


def draw_glances(draws: np.random.Generator, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the changes to each image of a batch before a teacher sees it (`glance`).

    Returns:
        (theta, sigma, grain). theta: affine maps, float [B, 2, 3], with a flip in half of the
        images, a shift of up to 6 % of the width and a scale within 8 %. sigma: blur in pixels,
        float [B], 0 in half of the images. grain: standard deviation of noise on [-1, 1] pixels,
        float [B], up to 0.08.
    """
    flip = np.where(draws.random(batch) < 0.5, -1.0, 1.0)
    scale = draws.uniform(0.92, 1.08, batch)
    shift = draws.uniform(-0.12, 0.12, (batch, 2))  # in grid_sample's units: the width is 2
    theta = np.zeros((batch, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = flip * scale, scale
    theta[:, :, 2] = shift
    sigma = np.where(draws.random(batch) < 0.5, 0.0, draws.uniform(0.3, 0.9, batch))
    grain = draws.uniform(0.0, 0.08, batch)
    return (
        torch.from_numpy(theta),
        torch.from_numpy(sigma.astype(np.float32)),
        torch.from_numpy(grain.astype(np.float32)),
    )


def glance(pixels: Tensor, theta: Tensor, sigma: Tensor, grain: Tensor, noise: Tensor) -> Tensor:
    """Move and blur images and add noise to them before a teacher sees them.

    Without this, a denoiser learns patterns that only this teacher reads as the identity. The
    result is differentiable in `pixels`.

    Args:
        pixels: float [B, 3, S, S] in [-1, 1].
        theta: affine maps [B, 2, 3] of grid_sample.
        sigma: blur in pixels [B]; the kernel spans three pixels.
        grain: standard deviation [B] of the noise.
        noise: standard noise of the shape of `pixels`.
    """
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    seen = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    side = torch.exp(-0.5 / sigma.clamp_min(0.05).square())
    centre = 1.0 / (1.0 + 2.0 * side)
    side = (centre * side)[:, None, None, None]
    centre = centre[:, None, None, None]
    for dim in (2, 3):
        before = torch.cat([seen.narrow(dim, 0, 1), seen.narrow(dim, 0, seen.shape[dim] - 1)], dim)
        after = torch.cat(
            [seen.narrow(dim, 1, seen.shape[dim] - 1), seen.narrow(dim, seen.shape[dim] - 1, 1)],
            dim,
        )
        seen = centre * seen + side * (before + after)
    return seen + grain[:, None, None, None] * noise
