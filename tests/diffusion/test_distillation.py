"""Students follow their teacher's path: against Gaussian data, whose best denoiser is known."""

import pytest
import torch
from torch import Tensor

from factory.diffusion.distillation import Few, Segments, check_few
from factory.diffusion.sampling import sample_latents
from factory.diffusion.schedule import Noising, Process
from factory.recipe import InputError, Sampler

SPREAD = 0.3  # of the data
SHAPE = (1, 4, 4)


def segments(prediction: str = "v_prediction", steps: int = 2) -> Segments:
    noising = Noising(Process(prediction=prediction))  # type: ignore[arg-type]
    return Segments(Few(steps=steps, teacher_steps=20), noising)


def teacher(cut: Segments):
    """The best prediction for data N(0, SPREAD^2): x0-hat is a share of x_t."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        signal, sigma = cut.signal_sigma(t)
        clean = signal * SPREAD**2 / (signal**2 * SPREAD**2 + sigma**2) * x
        return cut.noising.target(clean, (x - signal * clean) / sigma, t)

    return predict


def exact(cut: Segments):
    """The prediction from which one DDIM step ends where the teacher's many steps end."""
    ask = teacher(cut)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        made = torch.empty_like(x)
        for row in range(len(x)):
            number = int(cut.number(t[row : row + 1]))
            end = (number - 1) // cut.each * cut.each
            now, place = x[row : row + 1], number
            while place > end:
                at, to = cut.times[place : place + 1], cut.times[place - 1 : place]
                clean = cut.noising.clean(now, ask(now, at), at)
                now, place = cut.moved(now, clean, at, to), place - 1
            signal, sigma = cut.signal_sigma(t[row : row + 1])
            signal_to, sigma_to = cut.signal_sigma(cut.times[end : end + 1])
            share = sigma_to / sigma
            wanted = (now - share * x[row : row + 1]) / (signal_to - share * signal)
            noise = (x[row : row + 1] - signal * wanted) / sigma
            made[row] = cut.noising.target(wanted, noise, t[row : row + 1])[0]
        return made

    return predict


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_that_is_right_is_its_own_target(prediction: str, steps: int) -> None:
    cut = segments(prediction, steps)
    t = cut.at(torch.arange(0, 1000, 37))
    noisy = torch.randn(len(t), *SHAPE, generator=torch.Generator().manual_seed(1))
    student = exact(cut)
    target = cut.target(noisy, t, teacher(cut), student)
    assert torch.allclose(target, student(noisy, t), atol=2e-4, rtol=1e-3)
    wrong = cut.target(noisy, t, teacher(cut), lambda x, t: torch.zeros_like(x))
    assert not torch.allclose(wrong, target, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_ddim_of_so_many_steps_takes_the_teachers_path(steps: int) -> None:
    cut = segments(steps=steps)
    seeds = list(range(64))
    process = cut.noising.process
    many = Sampler(name="ddim", steps=20)
    whole = sample_latents(teacher(cut), seeds, SHAPE, process, many)
    few = Sampler(name="ddim", steps=steps)
    made = sample_latents(exact(cut), seeds, SHAPE, process, few)
    assert torch.allclose(made, whole, atol=1e-4)
    assert 0.2 < float(whole.std()) < 1.05 * SPREAD


def test_a_student_learns_by_its_targets() -> None:
    """One number a time step is all that this data needs; it starts as the teacher."""
    cut = segments(steps=1)
    table = torch.nn.Parameter(torch.zeros(21))
    ask = teacher(cut)

    def student(x: Tensor, t: Tensor) -> Tensor:
        return ask(x, t) + table[cut.number(t)][:, None, None, None] * x

    optimizer = torch.optim.Adam([table], lr=0.02)
    draws = torch.Generator().manual_seed(0)

    def error() -> float:
        t = cut.at(torch.arange(0, 1000, 10))
        noisy = torch.randn(len(t), *SHAPE, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            return float((student(noisy, t) - exact(cut)(noisy, t)).square().mean())

    before = error()
    for _ in range(400):
        t = cut.at(torch.randint(0, 1000, (64,), generator=draws))
        clean = SPREAD * torch.randn(64, *SHAPE, generator=draws)
        noise = torch.randn(64, *SHAPE, generator=draws)
        noisy = cut.noising.noised(clean, noise, t)
        target = cut.target(noisy, t, ask, student)
        loss = (student(noisy, t) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < 0.05 * before


def test_what_a_student_has_not_learned_is_refused() -> None:
    learned = {"steps": 2, "guidance_scale": 1.75}
    check_few(learned, Sampler(name="ddim", steps=2))
    check_few(None, Sampler(name="ddpm", steps=1000))
    for asked in (
        Sampler(name="ddim", steps=4),
        Sampler(name="ddim", steps=2, guidance_scale=1.5),
        Sampler(name="ddim", steps=2, eta=1.0),
        Sampler(name="unipc", steps=2),
    ):
        with pytest.raises(InputError, match="has learned ddim of 2 steps, guidance_scale 1"):
            check_few(learned, asked)


def test_steps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of steps"):
        Few(steps=3, teacher_steps=32)
