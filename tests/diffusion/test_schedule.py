"""The noise process and its samplers, against closed forms and few-line computations."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from pydantic import ValidationError

from factory.diffusion.sampling import draw_noise, guide, guided, sample_latents
from factory.diffusion.schedule import Noising, Process, make_scheduler
from factory.recipe import Sampler

EPSILON = Process()
VELOCITY = Process(prediction="v_prediction", zero_terminal_snr=True)
SHAPE = (2, 4, 4)


def linear_kept() -> np.ndarray:
    return np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))


def test_the_schedule_is_the_papers() -> None:
    np.testing.assert_allclose(Noising(EPSILON).kept.numpy(), linear_kept(), rtol=1e-4)


@pytest.mark.parametrize("process", [EPSILON, VELOCITY])
def test_a_perfect_prediction_gives_back_the_clean_latents(process: Process) -> None:
    noising = Noising(process)
    clean, noise = torch.randn(5, *SHAPE), torch.randn(5, *SHAPE)
    t = torch.tensor([0, 1, 300, 700, 950])
    noisy = noising.noised(clean, noise, t)
    found = noising.clean(noisy, noising.target(clean, noise, t), t)
    torch.testing.assert_close(found, clean, atol=2e-4, rtol=1e-3)


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    noising, last = Noising(VELOCITY), torch.tensor([999])
    assert noising.signal(last).item() == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ValidationError, match="zero_terminal_snr"):
        Process(zero_terminal_snr=True)


def test_min_snr_weights() -> None:
    noising, t = Noising(EPSILON), torch.tensor([0, 100, 500, 999])
    kept = linear_kept()[t.numpy()]
    snr = kept / (1 - kept)
    expected = np.minimum(snr, 5.0) / snr
    np.testing.assert_allclose(noising.weight(t, 5.0).numpy(), expected, rtol=1e-3)
    velocity = Noising(Process(prediction="v_prediction"))
    expected = np.minimum(snr, 5.0) / (snr + 1)
    np.testing.assert_allclose(velocity.weight(t, 5.0).numpy(), expected, rtol=1e-3)
    assert torch.equal(noising.weight(t, 0.0), torch.ones(4))


def test_guidance_algebra() -> None:
    c, u = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    torch.testing.assert_close(guide(c, u, 1.0, 0.0), c)
    torch.testing.assert_close(guide(c, u, 2.5, 0.0), u + 2.5 * (c - u))
    full = guide(c, u, 2.5, 1.0)
    torch.testing.assert_close(full.std((1, 2, 3)), c.std((1, 2, 3)))


def test_guidance_keeps_to_its_interval() -> None:
    calls: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, x, t, context, keep=None, empty=None):
            calls.append(len(x))
            shown = torch.zeros(len(x)) if context is None else context[:, 0]
            if empty is not None:
                shown = torch.where(empty, torch.zeros(()), shown)
            return shown[:, None, None, None].expand_as(x)

    predict = guided(Counting(), torch.ones(3, 1), 3.0, (0.2, 0.8))  # type: ignore[arg-type]
    x = torch.zeros(3, *SHAPE)
    assert predict(x, torch.full((3,), 500))[0, 0, 0, 0] == 3.0
    assert predict(x, torch.full((3,), 900))[0, 0, 0, 0] == 1.0
    assert calls == [6, 3]


def test_noise_is_a_function_of_the_position_alone() -> None:
    together = draw_noise([11, 12, 13], SHAPE, 4)
    assert torch.equal(together[1], draw_noise([12], SHAPE, 4)[0])
    assert not torch.equal(together[1], draw_noise([12], SHAPE, 5)[0])
    many = draw_noise(range(400), SHAPE, 0)
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1.0) < 0.03


def gaussian_prediction(noising: Noising, spread: float):
    """Return the exact noise prediction for data drawn from N(0, spread^2)."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        kept = noising.kept[t].float()[:, None, None, None]
        return (1 - kept).sqrt() * x / (kept * spread**2 + 1 - kept)

    return predict


def test_ddim_against_its_equation_on_gaussian_data() -> None:
    noising, seeds, steps = Noising(EPSILON), [3, 4, 5], 10
    predict = gaussian_prediction(noising, 0.5)
    found = sample_latents(predict, seeds, SHAPE, EPSILON, Sampler(name="ddim", steps=steps))
    kept = linear_kept()
    x = draw_noise(seeds, SHAPE, 0).double().numpy()
    times = [round(1000 - n * 1000 / steps) - 1 for n in range(steps)]
    for t, before in zip(times, [*times[1:], None], strict=True):
        noise = math.sqrt(1 - kept[t]) * x / (kept[t] * 0.25 + 1 - kept[t])
        clean = (x - math.sqrt(1 - kept[t]) * noise) / math.sqrt(kept[t])
        left = kept[before] if before is not None else 1.0
        if before is None:
            left = 1.0
        x = math.sqrt(left) * clean + math.sqrt(1 - left) * noise
    np.testing.assert_allclose(found.numpy(), x, atol=2e-3)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(name="ddpm", steps=1000),
        Sampler(name="ddim", steps=200, eta=1.0),
        Sampler(name="ddim", steps=50),
        Sampler(name="dpmsolver++", steps=16),
        Sampler(name="unipc", steps=16),
    ],
    ids=lambda s: f"{s.name}-{s.eta}",
)
def test_every_sampler_finds_the_datas_spread(sampler: Sampler) -> None:
    predict = gaussian_prediction(Noising(EPSILON), 0.5)
    made = sample_latents(predict, range(64), SHAPE, EPSILON, sampler)
    assert made.std().item() == pytest.approx(0.5, rel=0.08)
    assert abs(made.mean().item()) < 0.05


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_clipped_sampling_never_leaves_the_range_of_pixels(name: str, prediction: str) -> None:
    process = Process(prediction=prediction)  # type: ignore[arg-type]
    noising = Noising(process)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        clean = torch.full_like(x, 3.0)  # a network that is far too sure of white
        noise = (x - noising.signal(t) * clean) / noising.sigma(t)
        return noise if prediction == "epsilon" else noising.target(clean, noise, t)

    sampler = Sampler(name=name, steps=10)  # type: ignore[arg-type]
    free = sample_latents(predict, [1, 2], SHAPE, process, sampler)
    held = sample_latents(predict, [1, 2], SHAPE, process, sampler, clip=True)
    assert free.mean().item() == pytest.approx(3.0, abs=0.05)
    assert held.max().item() <= 1.0 + 1e-4
    assert held.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", ["dpmsolver++", "unipc"])
def test_few_steps_keep_faint_detail(name: str) -> None:
    predict = gaussian_prediction(Noising(EPSILON), 0.1)
    sampler = Sampler(name=name, steps=14)  # type: ignore[arg-type]
    made = sample_latents(predict, range(64), SHAPE, EPSILON, sampler)
    assert made.std().item() == pytest.approx(0.1, rel=0.08)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
def test_neighbours_in_a_batch_do_not_enter(name: str) -> None:
    sampler = Sampler(name=name, steps=6, eta=0.5 if name == "ddim" else 0.0)  # type: ignore[arg-type]
    predict = gaussian_prediction(Noising(EPSILON), 0.5)
    one = sample_latents(predict, [7, 8, 9], SHAPE, EPSILON, sampler)
    other = sample_latents(predict, [1, 8, 2], SHAPE, EPSILON, sampler)
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0])


def test_the_ancestral_step_is_diffusers_own_with_positional_noise() -> None:
    scheduler = make_scheduler(EPSILON, Sampler(name="ddpm", steps=20))
    assert isinstance(scheduler, DDPMScheduler)
    seeds, predict = [1, 2], gaussian_prediction(Noising(EPSILON), 0.5)
    found = sample_latents(predict, seeds, SHAPE, EPSILON, Sampler(name="ddpm", steps=20))
    x = draw_noise(seeds, SHAPE, 0)
    for number, t in enumerate(scheduler.timesteps, start=1):
        steps = torch.full((2,), int(t))
        generator = torch.Generator().manual_seed(number)
        stepped = scheduler.step(predict(x, steps), t, x, generator=generator).prev_sample
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
        before = int(scheduler.previous_timestep(t))
        kept = scheduler.alphas_cumprod[t]
        beta = 1 - kept / (scheduler.alphas_cumprod[before] if before >= 0 else 1.0)
        if before >= 0:
            stepped = stepped + beta.sqrt() * (draw_noise(seeds, SHAPE, number) - drawn)
        x = stepped
    torch.testing.assert_close(found, x, atol=1e-3, rtol=1e-3)
