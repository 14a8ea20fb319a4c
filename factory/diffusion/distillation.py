"""Few-step students: a denoiser that goes a teacher's many steps in a few.

Time is cut into as many segments as the student has steps. Inside a segment the student learns to
go from any time to the segment's end at once: one small DDIM step of the guided teacher, then the
student's own jump from there, is what its jump has to equal (multistep consistency models, Heek,
Hoogeboom and Salimans 2024, algorithm 1). It follows the teacher's deterministic path, so the same
noise becomes the same face, and guidance is learned: sampling needs none.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from factory.diffusion.files import load_denoiser
from factory.diffusion.sampling import Given, Predict, guide
from factory.diffusion.schedule import Noising
from factory.recipe import InputError, Part, Positive, Sampler, Weights


class Few(Part):
    """How a student is distilled from the denoiser in `weights.denoiser`."""

    steps: Annotated[Positive, Field(le=16)] = Field(
        default=2, description="Network evaluations for an image, of the student."
    )
    guidance_scale: Annotated[float, Field(ge=1.0)] = Field(
        default=1.0, description="Of the teacher; the student learns what comes out."
    )
    teacher_steps: Positive = Field(
        default=100, description="DDIM steps that the teacher would take; a multiple of steps."
    )

    @model_validator(mode="after")
    def _divided(self) -> "Few":
        if self.teacher_steps % self.steps or self.teacher_steps == self.steps:
            raise ValueError(
                f"teacher_steps is {self.teacher_steps}, accepted is a multiple of steps "
                f"({self.steps}) that is larger"
            )
        return self


class Segments:
    """The times of a distillation, on DDIM's trailing spacing, so that DDIM samples the student."""

    def __init__(self, few: Few, noising: Noising) -> None:
        """Cut a process into the teacher's steps and the student's segments."""
        self.few, self.noising = few, noising
        steps = torch.arange(few.teacher_steps + 1, dtype=torch.float64)
        self.times = (steps * noising.process.timesteps / few.teacher_steps).round().long() - 1
        self.each = few.teacher_steps // few.steps

    def number(self, t: Tensor) -> Tensor:
        """Return which of the teacher's steps a time lies in, int64 [B], 1 to teacher_steps."""
        return t * self.few.teacher_steps // self.noising.process.timesteps + 1

    def at(self, t: Tensor) -> Tensor:
        """Return the time at which the step that holds `t` begins, int64 [B]."""
        return self.times.to(t.device)[self.number(t)]

    def signal_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha-bar) and sqrt(1 - alpha-bar), float32 [B, 1, 1, 1]; -1 is no noise."""
        kept = torch.cat([self.noising.kept.new_ones(1), self.noising.kept]).to(t.device)[t + 1]
        kept = kept[:, None, None, None]
        return kept.sqrt().float(), (1.0 - kept).clamp_min(0.0).sqrt().float()

    def moved(self, noisy: Tensor, clean: Tensor, t: Tensor, to: Tensor) -> Tensor:
        """Take one DDIM step from time `t` to `to`, given x0-hat (Song et al. 2021, eta 0)."""
        signal, sigma = self.signal_sigma(t)
        signal_to, sigma_to = self.signal_sigma(to)
        return signal_to * clean + sigma_to * (noisy - signal * clean) / sigma

    def target(self, noisy: Tensor, t: Tensor, teacher: Predict, student: Predict) -> Tensor:
        """Return what the student's network should answer at x_t, float32 [B, C, H, W].

        Args:
            noisy: x_t at times of `at`.
            t: those times, int64 [B].
            teacher: (x_t, t) -> its guided prediction.
            student: (x_t, t) -> the student's prediction; no gradient goes through it.
        """
        number = self.number(t)
        times = self.times.to(t.device)
        near, end = times[number - 1], times[(number - 1) // self.each * self.each]
        with torch.no_grad():
            clean = self.noising.clean(noisy, teacher(noisy, t).float(), t)
            stepped = self.moved(noisy, clean, t, near)
            inner = near > end  # the others have arrived
            asked = near.clamp_min(0)
            jumped = self.noising.clean(stepped, student(stepped, asked).float(), asked)
            landed = self.moved(stepped, jumped, asked, end)
            landed = torch.where(inner[:, None, None, None], landed, stepped)
            # The x0-hat from which one DDIM step lands there.
            signal, sigma = self.signal_sigma(t)
            signal_to, sigma_to = self.signal_sigma(end)
            share = sigma_to / sigma
            wanted = (landed - share * noisy) / (signal_to - share * signal)
            noise = (noisy - signal * wanted) / sigma
            return self.noising.target(wanted, noise, t)

    def followed(
        self,
        noisy: Tensor,
        t: Tensor,
        teacher: nn.Module,
        student: nn.Module,
        given: Given,
        empty: Tensor,
    ) -> Tensor:
        """Return `target` where both are denoisers with conditions, the teacher guided.

        Args:
            noisy: x_t at times of `at`.
            t: those times, int64 [B].
            teacher: called as (x, t, given, keep=None, empty=mask); frozen.
            student: called in the same way.
            given: the conditions.
            empty: which rows have the empty context, bool [B]: they stay unguided.
        """

        def guided(x: Tensor, at: Tensor) -> Tensor:
            with_context = teacher(x, at, given, keep=None, empty=empty)
            if self.few.guidance_scale == 1.0:
                return with_context
            without = teacher(x, at, given, keep=None, empty=torch.ones_like(empty))
            return guide(with_context.float(), without.float(), self.few.guidance_scale, 0.0)

        return self.target(
            noisy, t, guided, lambda x, at: student(x, at, given, keep=None, empty=empty)
        )


def load_followed(
    weights: Weights | None,
    stated: Callable[[dict[str, Any]], dict[str, Any]],
    wanted: dict[str, Any],
    build: Callable[[], nn.Module],
) -> nn.Module:
    """Load the denoiser that a student follows, frozen.

    Args:
        weights: `weights.denoiser` of the student's recipe.
        stated: takes from a file's config what decides: `system`, `model` and `process`.
        wanted: the same of the student.
        build: makes its network, as the student's.

    Raises:
        InputError: it is missing, a student itself, or of another system, shape or noise process.
    """
    if weights is None:
        raise InputError(
            "recipe field weights.denoiser: missing; options.few distils the denoiser named there"
        )
    field = f"recipe field weights.denoiser.location: {weights.location}"

    def built(config: dict[str, Any]) -> nn.Module:
        if "few" in config:
            raise InputError(
                f"{field} is a student of {config['few']['steps']} steps itself; accepted is a "
                "denoiser of many steps"
            )
        found = stated(config)
        for name, value in wanted.items():
            if found[name] != value:
                raise InputError(
                    f"{field} has {name} {found[name]}; accepted is what the student has, {value}"
                )
        return build()

    return load_denoiser(weights, built)[0]


def check_few(few: dict[str, Any] | None, sampler: Sampler) -> None:
    """Raise InputError if a student is asked for what it has not learned.

    Args:
        few: what the denoiser's file says of its distillation; None for a denoiser of many steps.
        sampler: the recipe's.
    """
    if few is None:
        return
    steps = few["steps"]
    asked = (sampler.name, sampler.steps, sampler.guidance_scale, sampler.eta)
    if asked != ("ddim", steps, 1.0, 0.0):
        raise InputError(
            f"recipe field sampler: {sampler.name} of {sampler.steps} steps, guidance_scale "
            f"{sampler.guidance_scale:g}, eta {sampler.eta:g}; the denoiser is a student that has "
            f"learned ddim of {steps} steps, guidance_scale 1 (the teacher's "
            f"{few['guidance_scale']:g} is in its weights) and eta 0"
        )
