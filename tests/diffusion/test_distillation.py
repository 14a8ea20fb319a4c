"""Students follow their teacher's path: against Gaussian data, whose best denoiser is known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from factory.diffusion.distillation import Few, Segments, drawn_at, student
from factory.diffusion.sampling import draw_noise, sample_latents
from factory.diffusion.schedule import Noising, Process
from factory.recipe import InputError, Sampler

SPREAD = 0.3  # of the data
SHAPE = (1, 4, 4)


def segments(prediction: str = "v_prediction", steps: int = 2, **told: Any) -> Segments:
    noising = Noising(Process(prediction=prediction))  # type: ignore[arg-type]
    return Segments(Few.model_validate({"steps": steps} | told), noising)


def noise_of(count: int, seed: int = 0) -> Tensor:
    return draw_noise(range(seed, seed + count), SHAPE, 0)


def teacher(cut: Segments):
    """The best prediction for data N(0, SPREAD^2): x0-hat is a share of x_t."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        signal, sigma = cut.signal_sigma(t)
        clean = signal * SPREAD**2 / (signal**2 * SPREAD**2 + sigma**2) * x
        return cut.noising.target(clean, (x - signal * clean) / sigma, t)

    return predict


@pytest.mark.parametrize("steps", [1, 2])
def test_a_path_nears_the_flow_by_second_order(steps: int) -> None:
    """The probability flow of N(0, SPREAD^2) scales x_t by the ratio of the deviations."""
    noise, errors = noise_of(64), []
    for teacher_steps in (6, 12, 24):
        cut = segments(steps=steps, teacher_steps=teacher_steps)
        signal, sigma = cut.signal_sigma(torch.cat([cut.starts, cut.ends[-1:]]))
        deviation = (signal**2 * SPREAD**2 + sigma**2).sqrt()
        exact = noise * (deviation / deviation[0])[:, None]
        path = cut.path(noise, teacher(cut))
        assert path.shape == (steps + 1, 64, *SHAPE) and torch.equal(path[0], noise)
        errors.append(float((path - exact).abs().max()))
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 3  # first order would halve them


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_path_ends_where_diffusers_sampler_does(prediction: str, steps: int) -> None:
    cut = segments(prediction, steps, teacher_steps=12)
    made = cut.path(noise_of(16), teacher(cut))[-1]
    sampler = Sampler(name="dpmsolver++", steps=12)
    whole = sample_latents(teacher(cut), list(range(16)), SHAPE, cut.noising.process, sampler)
    assert torch.allclose(made, whole, rtol=5e-3, atol=1e-3)  # its times are whole numbers


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_each_segment_is_learned_as_often_and_another_each_turn(steps: int) -> None:
    cut, drawn = segments(steps=steps), torch.arange(1000)
    turns = torch.stack([cut.start(drawn, turn) for turn in range(steps)])
    assert turns[0].unique().tolist() == sorted(cut.starts.tolist())
    assert turns[0].bincount().max() == 1000 // steps
    assert all(len(row.unique()) == steps for row in turns.T)
    assert torch.equal(cut.start(drawn, steps), turns[0])
    assert torch.equal(cut.starts[cut.number(turns[0])], turns[0])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_target_lands_where_it_should(prediction: str) -> None:
    cut = segments(prediction, 4)
    t = cut.starts[torch.arange(8) % 4]
    ends = cut.ends[torch.arange(8) % 4]
    noisy, landed = noise_of(8), noise_of(8, seed=100)
    answer = cut.target(noisy, landed, t)
    made = cut.moved(noisy, cut.noising.clean(noisy, answer, t), t, ends)
    assert torch.allclose(made, landed, atol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_weight_turns_an_error_into_one_of_the_landing(prediction: str) -> None:
    cut = segments(prediction, 4)
    t = cut.starts[torch.arange(8) % 4]
    ends = cut.ends[torch.arange(8) % 4]
    noisy = noise_of(8)
    at = [
        cut.moved(noisy, cut.noising.clean(noisy, torch.full_like(noisy, value), t), t, ends)
        for value in (0.0, 1.0)
    ]
    apart = (at[0] - at[1]).square().mean(dim=(1, 2, 3))
    assert torch.allclose(cut.weight(t), apart, rtol=1e-3)


class Network(torch.nn.Module):
    """Asks a function, and counts how often; rows that are empty get its half."""

    def __init__(self, ask: Any) -> None:
        super().__init__()
        self.ask, self.asked = ask, 0

    def forward(self, x: Tensor, t: Tensor, given: Tensor, keep: None, empty: Tensor) -> Tensor:
        self.asked += 1
        return torch.where(empty[:, None, None, None], 0.5, 1.0) * self.ask(x, t)


def test_a_student_that_is_right_goes_its_teachers_way() -> None:
    cut = segments(steps=2)
    noise, places = noise_of(32), np.arange(32)
    asked = (Network(teacher(cut)), torch.zeros(32, 1), torch.zeros(32, dtype=torch.bool), places)
    answers = [cut.followed(noise, start.expand(32), *asked) for start in cut.starts]
    made = noise
    for start, end, (noisy, answer) in zip(cut.starts, cut.ends, answers, strict=True):
        assert torch.allclose(made, noisy, atol=1e-4)
        t = start.expand(32)
        made = cut.moved(made, cut.noising.clean(made, answer, t), t, end.expand(32))
    whole = iter(answers)
    sampled = cut.sample(lambda x, t: next(whole)[1], noise)
    assert torch.allclose(sampled, made, atol=1e-6)
    assert torch.allclose(sampled, cut.path(noise, teacher(cut))[-1], atol=1e-4)


def test_guidance_is_in_the_path_and_empty_rows_have_none() -> None:
    empty = torch.arange(8) % 2 == 0
    paths = []
    for scale in (1.0, 2.0):
        cut = segments(guidance_scale=scale)
        network = Network(teacher(cut))
        t = cut.starts[1].expand(8)
        noisy, _ = cut.followed(noise_of(8), t, network, torch.zeros(8, 1), empty, np.arange(8))
        assert network.asked == 12 * (1 if scale == 1.0 else 2)
        paths.append(noisy)
    assert torch.allclose(paths[0][empty], paths[1][empty], atol=1e-6)
    assert not torch.allclose(paths[0][~empty], paths[1][~empty], atol=1e-2)


def test_the_paths_of_a_batch_that_comes_again_are_kept() -> None:
    cut = segments(batches=3)
    network, none = Network(teacher(cut)), torch.zeros(4, dtype=torch.bool)
    given, places = torch.zeros(4, 1), np.arange(4)
    first = [
        cut.followed(noise_of(4), t.expand(4), network, given, none, places) for t in cut.starts
    ]
    assert network.asked == 12
    again = cut.followed(noise_of(4), cut.starts[1].expand(4), network, given, none, places)
    assert network.asked == 12 and torch.equal(again[1], first[1][1])
    cut.followed(noise_of(4, 50), cut.starts[1].expand(4), network, given, none, places + 4)
    assert network.asked == 24
    assert drawn_at(cut.few, 2) == (2, 0) and drawn_at(cut.few, 7) == (1, 2)
    assert drawn_at(None, 7) == drawn_at(Few(), 7) == (7, 0)


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
