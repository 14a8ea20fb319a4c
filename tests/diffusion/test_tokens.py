"""Condition tokens: their number at paper scale, their statistics against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from factory.diffusion.tokens import (
    IdentityTokens,
    StyleTokens,
    TokenAdapter,
    draw_kept,
    patch_statistics,
    sinusoids,
)


def test_statistics_are_numpys_over_each_patch():
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 5, 12, 12))
    mean, deviation = patch_statistics(torch.from_numpy(x), 3)
    assert mean.shape == deviation.shape == (2, 10, 5)
    np.testing.assert_allclose(mean[:, 0], x.mean(axis=(2, 3)), atol=1e-12)
    np.testing.assert_allclose(deviation[:, 0], x.std(axis=(2, 3)), atol=1e-9)
    for number in range(9):  # row by row
        row, column = divmod(number, 3)
        patch = x[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        np.testing.assert_allclose(mean[:, 1 + number], patch.mean(axis=(2, 3)), atol=1e-12)
        np.testing.assert_allclose(deviation[:, 1 + number], patch.std(axis=(2, 3)), atol=1e-9)


def test_a_ramp_has_the_deviation_of_a_uniform_distribution():
    ramp = torch.arange(1000, dtype=torch.float64).expand(1, 1, 1000, 1000)
    mean, deviation = patch_statistics(ramp, 1)
    assert mean[0, :, 0].tolist() == [499.5, 499.5]
    np.testing.assert_allclose(deviation[0, :, 0], np.sqrt((1000**2 - 1) / 12), rtol=1e-9)


def test_a_flat_map_has_a_finite_gradient():
    x = torch.full((1, 2, 4, 4), 1.5, requires_grad=True)
    mean, deviation = patch_statistics(x, 2)
    (mean.sum() + deviation.sum()).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert deviation.max() < 1e-3


@pytest.mark.parametrize(("grid", "side"), [(1, 56), (3, 54), (5, 55), (7, 56)])
def test_paper_scale_has_49_and_26_tokens(grid: int, side: int):
    identity = IdentityTokens(512, 512, 49, 512, 512)
    style = StyleTokens(64, 56, grid, 512)
    assert style.shape == (64, side, side)
    tokens, feature = identity(torch.randn(2, 512), torch.randn(2, 512, 7, 7))
    styles = style(torch.randn(2, 64, 56, 56), torch.ones(2, *style.shape, dtype=torch.bool))
    joined = torch.cat([tokens, styles], dim=1)
    assert joined.shape == (2, 49 + grid * grid + 1, 512) and feature.shape == (2, 512)
    if grid == 5:
        assert joined.shape[1] == 75
    adapter = TokenAdapter(joined.shape[1], 512, 1024)
    assert adapter(joined, 2).shape == (2, joined.shape[1], 1024)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 525_312
    assert sum(parameter.numel() for parameter in identity.parameters()) == 50 * 512 + 1


def test_identity_tokens_are_the_map_in_rows_and_a_thousandth_of_the_feature():
    identity = IdentityTokens(16, 16, 6, 16, 16)
    embedding, spatial = torch.randn(3, 16), torch.randn(3, 16, 2, 3)
    tokens, feature = identity(embedding, spatial)
    table = sinusoids(7, 16) - 0.5
    torch.testing.assert_close(tokens[:, 4], spatial[:, :, 1, 1] + table[5])
    torch.testing.assert_close(feature, 0.001 * (embedding + table[0]))


def test_sinusoids_are_those_of_the_position():
    table = sinusoids(4, 6)
    for position in range(4):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            assert table[position, 2 * pair].item() == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1].item() == pytest.approx(np.cos(angle), abs=1e-6)


def test_style_tokens_follow_the_equations():
    torch.manual_seed(0)
    style = StyleTokens(4, 7, 3, 8, dropout=0.0).eval()
    nn.init.normal_(style.mean_weight)
    nn.init.normal_(style.deviation_weight)
    shift = torch.randn(8)
    style.bn.running_mean = shift
    assert style.conv.bias is not None
    early = torch.randn(2, 4, 7, 7)
    rows = [int(n * 7 / 6) for n in range(6)]  # nearest: 6 of the 7 rows and columns
    x = early[:, :, rows][:, :, :, rows]
    x = torch.where(x > 0, x, 0.25 * x)  # PReLU starts at a quarter
    x = torch.einsum("oi,bihw->bohw", style.conv.weight[:, :, 0, 0], x)
    x = x + style.conv.bias[:, None, None] - shift[:, None, None]
    x = (x / (1.0 + style.bn.eps) ** 0.5).detach().double().numpy()
    for token, patch in ((0, x), (1 + 3 * 1 + 2, x[:, :, 2:4, 4:6])):
        mixed = style.mean_weight.detach().numpy() * patch.mean(axis=(2, 3))
        mixed = mixed + style.deviation_weight.detach().numpy() * patch.std(axis=(2, 3))
        mixed = mixed + style.positions[token].detach().numpy()
        spread = (mixed.var(axis=1, keepdims=True) + 1e-5) ** 0.5
        expected = (mixed - mixed.mean(axis=1, keepdims=True)) / spread
        np.testing.assert_allclose(style(early)[:, token].detach(), expected, atol=1e-4)


def test_training_needs_a_mask_and_evaluation_ignores_it():
    style = StyleTokens(4, 8, 2, 8, dropout=0.5)
    early = torch.randn(2, 4, 8, 8)
    with pytest.raises(ValueError, match="mask"):
        style(early)
    none = style(early, torch.zeros(2, 4, 8, 8, dtype=torch.bool))
    torch.testing.assert_close(none[0], none[1])
    style.eval()
    keep = draw_kept([1, 2], style.shape, 0.5)
    torch.testing.assert_close(style(early, keep), style(early))


def test_what_is_kept_is_a_function_of_the_seed():
    kept = draw_kept([5, 6, 7], (32, 30, 30), 0.3)
    assert kept.dtype == torch.bool and kept.shape == (3, 32, 30, 30)
    assert abs(kept.float().mean().item() - 0.7) < 0.005
    assert torch.equal(draw_kept([6], (32, 30, 30), 0.3)[0], kept[1])
    assert not torch.equal(kept[0], kept[1])


def test_empty_tokens_replace_those_of_their_samples():
    adapter = TokenAdapter(3, 8, 16, learn_empty=True)
    tokens = torch.randn(2, 3, 8)
    made = adapter(tokens, 2, torch.tensor([False, True]))
    torch.testing.assert_close(made[0], adapter.linear(tokens[0]))
    torch.testing.assert_close(made[1:], adapter(None, 1))
    some = adapter(tokens, 2, torch.tensor([[True, False, False], [False, False, True]]))
    torch.testing.assert_close(some[0, 1:], made[0, 1:])
    torch.testing.assert_close(some[0, 0], made[1, 0])
    torch.testing.assert_close(some[1, 2], made[1, 2])
    with pytest.raises(ValueError, match="learn_empty"):
        TokenAdapter(3, 8, 16)(None, 1)
