"""Contextual partial dropout and the empty context, against their definitions."""

import pytest
import torch

from factory.diffusion.conditioning import ContextProjection, draw_masks
from factory.diffusion.unet import ContextAttentionBlock, UNet, UNetConfig


@pytest.fixture
def projection() -> ContextProjection:
    torch.manual_seed(0)
    return ContextProjection(16, 32, 0.25, learn_empty=True)


def test_dropout_keeps_the_mean_and_scales_what_it_keeps(projection: ContextProjection) -> None:
    context = torch.randn(1, 16).expand(20_000, -1)
    keep, _ = draw_masks(7, 20_000, 32, 0.25, 0.0)
    assert abs(keep.float().mean() - 0.75) < 0.003
    plain = projection.linear(context)
    dropped = projection.train()(context, 20_000, keep)
    torch.testing.assert_close(dropped, torch.where(keep, plain / 0.75, torch.zeros(())))
    torch.testing.assert_close(dropped.mean(0), plain[0], atol=0.03, rtol=0.0)


def test_dropout_is_off_in_evaluation(projection: ContextProjection) -> None:
    context, keep = torch.randn(4, 16), torch.zeros(4, 32, dtype=torch.bool)
    torch.testing.assert_close(projection.eval()(context, 4, keep), projection.linear(context))


def test_training_without_a_mask_is_refused(projection: ContextProjection) -> None:
    with pytest.raises(ValueError, match="keep: None"):
        projection.train()(torch.randn(4, 16), 4)


def test_the_empty_context_comes_after_the_projection_and_is_never_dropped(
    projection: ContextProjection,
) -> None:
    keep = torch.zeros(4, 32, dtype=torch.bool)
    empty = torch.tensor([True, False, True, False])
    made = projection.train()(torch.randn(4, 16), 4, keep, empty)
    torch.testing.assert_close(made[0], projection.empty.detach())
    torch.testing.assert_close(made[2], projection.empty.detach())
    assert not made[1].any() and not made[3].any()


def test_all_blocks_see_the_same_mask() -> None:
    config = UNetConfig(
        latent_channels=4,
        latent_size=8,
        widths=(32, 32),
        attention=(True, True),
        blocks=1,
        norm_groups=8,
        context_size=16,
        context_channels=32,
        context_tokens=2,
        cpd_rate=0.5,
    )
    unet = UNet(config).train()
    seen: list[torch.Tensor] = []
    blocks = [m for m in unet.modules() if isinstance(m, ContextAttentionBlock)]
    for block in blocks:
        block.expand.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    keep, _ = draw_masks(1, 3, 32, 0.5, 0.0)
    unet(torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3]), torch.randn(3, 16), keep)
    assert len(seen) == len(blocks) == 7
    for context in seen:
        assert torch.equal(context, seen[0])
        assert torch.equal(context != 0, keep)


def test_masks_are_a_function_of_the_seed() -> None:
    first, again, other = (draw_masks(seed, 64, 32, 0.25, 0.5) for seed in (5, 5, 6))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
