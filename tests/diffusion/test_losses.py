"""How a teacher looks at images: what it is shown is what the draws say."""

import numpy as np
import pytest
import torch
from torch import nn

from factory.diffusion.losses import draw_glances, glance, identity_cosine, perceptual_loss
from factory.recipe import Backbone, InputError
from factory.recognition.backbones import make_backbone

SIZE = 32


def still(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    theta = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).expand(batch, 2, 3).clone()
    zeros = torch.zeros(batch)
    return theta, zeros, zeros.clone(), torch.randn(batch, 3, SIZE, SIZE)


def test_a_still_glance_changes_nothing() -> None:
    pixels = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(glance(pixels, *still(2)), pixels, atol=1e-4, rtol=0.0)


def test_a_flip_is_a_flip_and_a_blur_keeps_the_mean() -> None:
    pixels = torch.rand(2, 3, SIZE, SIZE)
    theta, sigma, grain, noise = still(2)
    theta[:, 0, 0] = -1.0
    torch.testing.assert_close(
        glance(pixels, theta, sigma, grain, noise), pixels.flip(3), atol=1e-4, rtol=0.0
    )
    blurred = glance(pixels, *still(2)[:1], torch.full((2,), 0.8), grain, noise)
    assert blurred.std() < 0.8 * pixels.std()
    torch.testing.assert_close(blurred.mean(), pixels.mean(), atol=2e-3, rtol=0.0)


def test_grain_has_its_strength() -> None:
    theta, sigma, _, noise = still(2)
    pixels = torch.zeros(2, 3, SIZE, SIZE)
    seen = glance(pixels, theta, sigma, torch.tensor([0.0, 0.08]), noise)
    assert not seen[0].any()
    assert seen[1].std().item() == pytest.approx(0.08, rel=0.05)


def test_draws_are_a_function_of_the_generator() -> None:
    first, again = (draw_glances(np.random.default_rng(1), 500) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert 0.4 < (first[0][:, 0, 0] < 0).float().mean() < 0.6
    assert 0.4 < (first[1] == 0).float().mean() < 0.6


def test_the_cosine_passes_gradients() -> None:
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 8, bias=False))
    pixels = torch.randn(2, 3, 4, 4, requires_grad=True)
    wanted = torch.randn(2, 8)
    cosine = identity_cosine(teacher, pixels, wanted)
    expected = torch.nn.functional.cosine_similarity(teacher(pixels), wanted)
    torch.testing.assert_close(cosine, expected)
    cosine.sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_perceptual_distance_is_zero_only_for_the_same_image() -> None:
    backbone = Backbone(name="iresnet", widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), embedding_size=8)
    teacher = make_backbone(backbone, 32).eval()
    one, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert perceptual_loss(teacher, one, one).item() == 0.0
    assert perceptual_loss(teacher, one, other).item() > 0.0
    with pytest.raises(InputError, match="IResNet"):
        perceptual_loss(nn.Flatten(), one, other)
