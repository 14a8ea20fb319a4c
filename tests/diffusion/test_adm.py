"""The ADM denoiser: the paper's size, where conditions enter, which recipes are refused."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from factory.diffusion.adm import ADM, ADMConfig, AttentionBlock

TINY = ADMConfig(
    size=8,
    in_channels=4,
    out_channels=6,
    widths=(16, 32),
    attention=(False, True),
    unresized=(),
    head_channels=16,
    norm_groups=4,
)


@pytest.fixture
def awake() -> ADM:
    """A tiny denoiser whose zero-initialised layers say something."""
    torch.manual_seed(0)
    network = ADM(TINY)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0.0, 0.1)
    return network


def test_paper_scale_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = ADM(ADMConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 93_563_910
    blocks = [module for module in network.modules() if isinstance(module, AttentionBlock)]
    assert [block.heads for block in blocks] == [8, 8, 8, 8]


def test_paper_scale_goes_down_to_seven_pixels_and_back():
    with torch.device("meta"):
        network = ADM(ADMConfig())
        sizes = []
        for layer in (*network.down, *network.up):
            layer.register_forward_hook(lambda *hooked: sizes.append(hooked[2].shape[2]))
        made = network(torch.randn(1, 3, 112, 112), torch.zeros(1, dtype=torch.long))
    assert sizes[:11] == [112, 56, 56, 28, 28, 14, 14, 7, 7, 7, 7]
    assert sizes[11:] == [7, 7, 7, 7, 7, 14, 14, 14, 28, 28, 28, 56, 56, 56, 112, 112, 112]
    assert made.shape == (1, 3, 112, 112)


def test_a_fresh_denoiser_predicts_zero():
    made = ADM(TINY)(torch.randn(2, 4, 8, 8), torch.tensor([3, 900]))
    assert made.shape == (2, 4, 8, 8)
    assert not made.any()


def test_outside_keys_join_the_softmax_of_the_own_ones():
    torch.manual_seed(1)
    block = AttentionBlock(32, TINY).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    x, keys = torch.randn(2, 32, 3, 3).double(), torch.randn(2, 5, 64).double()
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    projected = block.project(tokens)
    attended = torch.empty(2, 9, 32).double()
    for head in range(2):  # 16 channels a head: query, key, value; outside: key, value
        own = projected[:, :, 48 * head : 48 * head + 48]
        outside = keys[:, :, 32 * head : 32 * head + 32]
        key = torch.cat([own[:, :, 16:32], outside[:, :, :16]], dim=1)
        value = torch.cat([own[:, :, 32:], outside[:, :, 16:]], dim=1)
        weights = (own[:, :, :16] @ key.transpose(1, 2) / math.sqrt(16)).softmax(dim=2)
        assert weights.shape == (2, 9, 14)
        attended[:, :, 16 * head : 16 * head + 16] = weights @ value
    expected = x + block.out(attended).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(block(x, keys), expected)


def test_outside_keys_are_a_set(awake: ADM):
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 500])
    keys, order = torch.randn(2, 6, 64), torch.randperm(6)
    made = awake(x, t, keys)
    torch.testing.assert_close(made, awake(x, t, keys[:, order]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made, awake(x, t), atol=1e-3)


def test_the_feature_is_added_to_the_time_embedding(awake: ADM):
    x, t, other = torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.tensor([700, 20])
    difference = awake.time(other) - awake.time(t)
    torch.testing.assert_close(awake(x, t, None, difference), awake(x, other), rtol=1e-3, atol=1e-4)


def test_only_the_first_channels_are_trained(awake: ADM):
    made = awake(torch.randn(2, 4, 8, 8), torch.tensor([1, 2]))
    made.square().mean().backward()
    assert awake.out.weight.grad is not None
    assert awake.out.weight.grad[:4].any()
    assert not awake.out.weight.grad[4:].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention": (True,)}, "one for each of the 2 widths"),
        ({"widths": (18, 32)}, "multiples of norm_groups"),
        ({"attention": (True, True)}, "one width"),
        ({"head_channels": 24}, "a multiple of head_channels"),
        ({"unresized": (1,)}, "levels below 1"),
        ({"size": 7}, "cannot be halved 1 times"),
        ({"out_channels": 3}, "in_channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        ADMConfig.model_validate(TINY.model_dump() | changed)
