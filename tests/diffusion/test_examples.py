"""What examples are made with, beside what tests of trainings see of them."""

import pytest
import torch
from gpu import pretended_gpu

from factory.diffusion.examples import resized


@pytest.mark.parametrize(("size", "wanted"), [(128, 112), (16, 48), (30, 11)])
def test_a_gradient_on_a_gpu_is_resized_as_torch_does(
    size: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    given, weight = torch.rand(2, 3, size, size) * 2 - 1, torch.randn(2, 3, wanted, wanted)
    here = given.clone().requires_grad_()
    made = resized(here, wanted)
    (made * weight).sum().backward()
    with pretended_gpu():
        there = given.to("cuda").requires_grad_()
        resized(there, wanted)
        monkeypatch.delattr("torch.nn.functional.interpolate")  # whose gradient does not repeat
        found = resized(there, wanted)
        (found * weight.to("cuda")).sum().backward()
        assert torch.allclose(found.cpu(), made, atol=2e-6)
        assert there.grad is not None and here.grad is not None
        assert torch.allclose(there.grad.cpu(), here.grad, atol=1e-5)
