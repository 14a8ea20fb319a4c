"""Students follow their teacher's path: against Gaussian data, whose best denoiser is known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from factory.diffusion.distillation import Few, Segments, student
from factory.diffusion.sampling import draw_noise, sample_latents
from factory.diffusion.schedule import Noising, Process
from factory.recipe import InputError, Sampler

SPREAD = 0.3  # of the data
SHAPE = (1, 4, 4)


def segments(prediction: str = "v_prediction", steps: int = 2, **told: Any) -> Segments:
    noising = Noising(Process(prediction=prediction))  # type: ignore[arg-type]
    return Segments(Few.model_validate({"steps": steps, "method": "consistency"} | told), noising)


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
    t = cut.spread(torch.arange(0, 1000, 37))
    noisy = torch.randn(len(t), *SHAPE, generator=torch.Generator().manual_seed(1))
    student = exact(cut)
    target = cut.target(noisy, t, teacher(cut), student)
    assert torch.allclose(target, student(noisy, t), atol=2e-4, rtol=1e-3)
    wrong = cut.target(noisy, t, teacher(cut), lambda x, t: torch.zeros_like(x))
    assert not torch.allclose(wrong, target, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_right_student_ends_where_its_teacher_does(steps: int) -> None:
    cut = segments(steps=steps)
    noise = draw_noise(range(64), SHAPE, 0)
    alone = segments(steps=12, teacher_steps=24)  # only to walk 12 steps by DDIM
    alone.times, alone.each = cut.times, 1
    whole = alone.sample(teacher(cut), noise)
    assert torch.allclose(cut.sample(exact(cut), noise), whole, atol=1e-4)
    assert 0.2 < float(whole.std()) < 1.05 * SPREAD


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_times_are_drawn_as_often_as_each_other(steps: int) -> None:
    drawn = torch.arange(12_000) % 1000
    step = segments(steps=steps).spread(drawn).bincount(minlength=1000)
    assert len(step.nonzero()) == 12 and int(step.max()) - int(step[step > 0].min()) <= 12
    cut = segments(steps=steps, method="trajectory")
    start = cut.spread(drawn).bincount(minlength=1000)
    assert start.nonzero()[:, 0].tolist() == cut.times[:: 12 // steps][1:].tolist()
    assert int(start.max()) - int(start[start > 0].min()) <= 12


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_weight_turns_an_error_into_one_of_the_landing(prediction: str) -> None:
    cut = segments(prediction)
    t = cut.spread(torch.arange(0, 1000, 90))
    noisy = torch.randn(len(t), *SHAPE, generator=torch.Generator().manual_seed(4))
    end = cut.times[(cut.number(t) - 1) // cut.each * cut.each]
    at = [
        cut.moved(noisy, cut.noising.clean(noisy, torch.full_like(noisy, value), t), t, end)
        for value in (0.0, 1.0)
    ]
    apart = (at[0] - at[1]).square().mean(dim=(1, 2, 3))
    assert torch.allclose(cut.weight(t), apart, rtol=1e-3)


def on_the_flow(cut: Segments, noisy: Tensor, t: Tensor) -> Tensor:
    """Where the probability flow of N(0, SPREAD^2) ends: x_t times the ratio of the deviations."""
    end = cut.times[(cut.number(t) - 1) // cut.each * cut.each]

    def deviation(at: Tensor) -> Tensor:
        signal, sigma = cut.signal_sigma(at)
        return (signal**2 * SPREAD**2 + sigma**2).sqrt()

    return noisy * deviation(end) / deviation(t)


def test_a_trajectory_nears_the_flow_by_second_order() -> None:
    errors = []
    for teacher_steps in (6, 12, 24):
        cut = segments(steps=2, method="trajectory", teacher_steps=teacher_steps)
        t = cut.spread(torch.full((64,), 700))
        noisy = torch.randn(len(t), *SHAPE, generator=torch.Generator().manual_seed(2))
        wanted = on_the_flow(cut, noisy, t)
        errors.append(float((cut.along(noisy, t, teacher(cut)) - wanted).abs().max()))
    assert errors[1] < errors[0] / 3 and errors[2] < errors[1] / 3  # first order would halve them


def test_a_trajectory_is_the_path_of_diffusers_sampler() -> None:
    cut = segments(steps=1, method="trajectory", teacher_steps=12)
    seeds = list(range(16))
    noisy = draw_noise(seeds, SHAPE, 0)
    made = cut.along(noisy, cut.spread(torch.full((16,), 700)), teacher(cut))
    sampler = Sampler(name="dpmsolver++", steps=12)
    whole = sample_latents(teacher(cut), seeds, SHAPE, cut.noising.process, sampler)
    assert torch.allclose(made, whole, rtol=5e-3, atol=1e-3)  # its times are whole numbers


def test_a_trajectorys_target_jumps_to_where_the_teacher_arrives() -> None:
    cut = segments(method="trajectory")
    middle = int(cut.times[6])
    t = cut.spread(torch.tensor([999, 600, 499, 3]))
    assert t.tolist() == [999, 999, middle, middle]
    noisy = torch.randn(len(t), *SHAPE, generator=torch.Generator().manual_seed(3))

    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("a trajectory asks the teacher alone")

    target = cut.target(noisy, t, teacher(cut), never)
    ends = torch.tensor([middle, middle, -1, -1])
    landed = cut.moved(noisy, cut.noising.clean(noisy, target, t), t, ends)
    assert torch.allclose(landed, cut.along(noisy, t, teacher(cut)), atol=1e-5)


@pytest.mark.parametrize("method", ["trajectory", "consistency"])
def test_a_student_learns_by_its_targets(method: str) -> None:
    """One number a time step is all that this data needs; it starts as the teacher."""
    cut = segments(steps=1, method=method)
    table = torch.nn.Parameter(torch.zeros(21))
    ask = teacher(cut)

    def student(x: Tensor, t: Tensor) -> Tensor:
        return ask(x, t) + table[cut.number(t)][:, None, None, None] * x

    optimizer = torch.optim.Adam([table], lr=0.02)
    draws = torch.Generator().manual_seed(0)

    def error() -> float:
        t = cut.spread(torch.arange(0, 1000, 10))
        noisy = torch.randn(len(t), *SHAPE, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            if method == "trajectory":
                right = cut.target(noisy, t, ask, ask)
            else:
                right = exact(cut)(noisy, t)
            return float((student(noisy, t) - right).square().mean())

    before = error()
    for _ in range(400):
        t = cut.spread(torch.randint(0, 1000, (64,), generator=draws))
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
    process = {"process": {}}
    learned = process | {"few": {"steps": 2, "guidance_scale": 1.75}}
    found = student(learned, Sampler(name="ddim", steps=2))
    assert found is not None and found.few.steps == 2
    assert student(process, Sampler(name="ddpm", steps=1000)) is None
    for asked in (
        Sampler(name="ddim", steps=4),
        Sampler(name="ddim", steps=2, guidance_scale=1.5),
        Sampler(name="ddim", steps=2, eta=1.0),
        Sampler(name="ddim", steps=2, spacing="leading"),
        Sampler(name="unipc", steps=2),
    ):
        with pytest.raises(InputError, match="has learned ddim of 2 steps, guidance_scale 1"):
            student(learned, asked)


def test_steps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of steps"):
        Few(steps=3, teacher_steps=32)
    with pytest.raises(InputError, match=r"teacher_steps: 200; two of them fall on one time step"):
        segments(teacher_steps=200)
