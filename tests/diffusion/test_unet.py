"""The denoiser has the paper's size, and its options mean what they say."""

import pytest
import torch
from pydantic import ValidationError

from factory.diffusion.unet import UNet, UNetConfig


def small(**changes: object) -> UNet:
    sizes = {
        "latent_channels": 4,
        "latent_size": 8,
        "widths": (32, 64),
        "attention": (False, True),
        "blocks": 1,
        "norm_groups": 8,
        "context_size": 16,
        "context_channels": 32,
        "context_tokens": 4,
        "learn_empty_context": True,
    }
    torch.manual_seed(0)
    return UNet(UNetConfig.model_validate(sizes | changes))


@pytest.mark.parametrize(
    ("conditioning", "stated"), [("cross_attention", 216_341_187), ("adagn", 134_595_939)]
)
def test_the_papers_parameter_counts(conditioning: str, stated: int) -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig(conditioning=conditioning))  # type: ignore[arg-type]
    assert sum(p.numel() for p in unet.parameters()) == stated


def test_the_empty_context_is_learned_only_when_asked() -> None:
    learned = sum(p.numel() for p in small().parameters())
    fixed = sum(p.numel() for p in small(learn_empty_context=False).parameters())
    assert learned - fixed == 32


@pytest.mark.parametrize("conditioning", ["cross_attention", "adagn", "both"])
def test_the_context_reaches_the_output(conditioning: str) -> None:
    unet = small(conditioning=conditioning).eval()
    for parameter in unet.parameters():  # the zeroed convolutions would hide it
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    one, other = torch.randn(2, 16), torch.randn(2, 16)
    assert unet(x, t, one).shape == x.shape
    assert not torch.allclose(unet(x, t, one), unet(x, t, other))
    empty = torch.ones(2, dtype=torch.bool)
    torch.testing.assert_close(unet(x, t, one, None, empty), unet(x, t, None))


def test_a_fresh_denoiser_predicts_zero() -> None:
    made = small().eval()(torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.randn(2, 16))
    assert not made.any()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"widths": (40, 64)}, "width 40"),
        ({"attention": (True,)}, "attention has 1"),
        ({"latent_size": 7}, "latent_size 7"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        small(**changes)
