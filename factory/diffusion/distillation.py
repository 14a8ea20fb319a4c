"""Few-step students: a denoiser that goes a teacher's many steps in a few.

The teacher's steps are even in log SNR, as those of DPM-Solver++ are here. They are cut into as
many segments as the student has steps. The guided teacher goes its whole way from noise, by steps
of second order (DPM-Solver++ 2M, Lu et al. 2022), and the student learns to go from each segment's
start to its end at once. Both follow the same deterministic path, so the same noise becomes the
same face, and guidance is learned: sampling needs none. No image is needed, only contexts.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from factory.diffusion.files import load_denoiser
from factory.diffusion.sampling import Given, Predict, guide
from factory.diffusion.schedule import Noising, Process, make_scheduler
from factory.recipe import InputError, Part, Positive, Sampler, Weights, checked


class Few(Part):
    """How a student is distilled from the denoiser in `weights.denoiser`."""

    steps: Annotated[Positive, Field(le=16)] = Field(
        default=2, description="Network evaluations for an image, of the student."
    )
    guidance_scale: Annotated[float, Field(ge=1.0)] = Field(
        default=1.0, description="Of the teacher; the student learns what comes out."
    )
    teacher_steps: Positive = Field(
        default=12, description="Steps that the teacher would take; a multiple of steps."
    )
    batches: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Draw only so many batches, again and again, and keep the teacher's paths in "
        "memory; 0 draws new ones without end.",
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
    """The times of a distillation, and the steps between them.

    Attributes:
        few: the distillation.
        noising: closed forms of the noise process.
        times: the teacher's times in rising order, int64 [teacher_steps + 1]; -1 is no noise.
        each: the teacher's steps in a segment.
        starts, ends: the times of the segments, in the order in which they are gone, int64 [steps].
        answers: `path` at the draws whose batches come again, by their place, on the CPU.
    """

    def __init__(self, few: Few, noising: Noising) -> None:
        """Cut a process into the teacher's steps and the student's segments.

        Raises:
            InputError: the process has fewer times than the teacher steps, at even log SNR.
        """
        self.few, self.noising = few, noising
        self.answers: dict[int, Tensor] = {}
        self.each = few.teacher_steps // few.steps
        sampler = Sampler(name="dpmsolver++", steps=few.teacher_steps)
        found = make_scheduler(noising.process, sampler).timesteps.flip(0)
        if bool((found.diff() < 1).any()):
            raise InputError(
                f"recipe field options.few.teacher_steps: {few.teacher_steps}; two of them fall on "
                "one time step of options.process, accepted are fewer"
            )
        self.times = torch.cat([found.new_full((1,), -1), found])
        bounds = self.times[:: self.each].flip(0)
        self.starts, self.ends = bounds[:-1], bounds[1:]

    def start(self, t: Tensor, turn: int) -> Tensor:
        """Turn times drawn evenly from [0, T) into starts of segments, each as often, int64 [B].

        Args:
            t: the times, int64 [B].
            turn: how often the batch came before; each time its rows learn another segment.
        """
        drawn = t * self.few.steps // self.noising.process.timesteps
        return self.starts.to(t.device)[(drawn + turn) % self.few.steps]

    def number(self, t: Tensor) -> Tensor:
        """Return which segment starts at a time, int64 [B], 0 for the one that starts at noise."""
        return (self.starts.to(t.device) == t[:, None]).int().argmax(dim=1)

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

    def path(self, noise: Tensor, teacher: Predict) -> Tensor:
        """Follow the teacher from noise by DPM-Solver++ (2M).

        A step is DDIM's with x0-hat extrapolated from the step before; the first one has none, and
        the last one to no noise takes x0-hat as it is, as is usual.

        Args:
            noise: standard noise, float32 [B, C, H, W].
            teacher: (x_t, t) -> its guided prediction.

        Returns:
            float32 [steps + 1, B, C, H, W]: the noise, and where each segment ends.
        """
        times, before, noisy, found = self.times.to(noise.device), None, noise, [noise]
        for place in range(self.few.teacher_steps, 0, -1):
            start, end = times[place].expand(len(noise)), times[place - 1].expand(len(noise))
            clean = self.noising.clean(noisy, teacher(noisy, start).float(), start)
            ahead = clean
            if before is not None and place > 1:
                last = times[place + 1].expand(len(noise))
                share = self._rise(start, end) / self._rise(last, start) / 2.0
                ahead = clean + share[:, None, None, None] * (clean - before)
            noisy, before = self.moved(noisy, ahead, start, end), clean
            if (place - 1) % self.each == 0:
                found.append(noisy)
        return torch.stack(found)

    def _rise(self, t: Tensor, to: Tensor) -> Tensor:
        """Return how much half the log-SNR rises from time `t` to the later step's, float32 [B]."""
        signal, sigma = self.signal_sigma(torch.stack([t, to], dim=1).flatten())
        half = (signal / sigma).log().flatten().unflatten(0, (-1, 2))
        return half[:, 1] - half[:, 0]

    def target(self, noisy: Tensor, landed: Tensor, t: Tensor) -> Tensor:
        """Return what the network should answer at x_t to land somewhere, float32 [B, C, H, W].

        Args:
            noisy: x_t at the starts of segments.
            landed: where it should be at their ends.
            t: the starts, int64 [B].
        """
        # The x0-hat from which one DDIM step lands there.
        signal, sigma = self.signal_sigma(t)
        signal_to, sigma_to = self.signal_sigma(self.ends.to(t.device)[self.number(t)])
        share = sigma_to / sigma
        wanted = (landed - share * noisy) / (signal_to - share * signal)
        return self.noising.target(wanted, (noisy - signal * wanted) / sigma, t)

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight of the network's squared error that makes it one of where it lands.

        Args:
            t: starts of segments, int64 [B]; float32 [B] comes back.
        """
        signal, sigma = self.signal_sigma(t)
        signal_to, sigma_to = self.signal_sigma(self.ends.to(t.device)[self.number(t)])
        # x0-hat is off by sigma for an error of one in velocity, by sigma / signal in noise.
        off = sigma if self.noising.process.prediction == "v_prediction" else sigma / signal
        return ((signal_to - sigma_to / sigma * signal) * off).square()[:, 0, 0, 0]

    def sample(self, predict: Predict, noise: Tensor) -> Tensor:
        """Go from noise to clean latents in the student's steps, float32 [B, C, H, W].

        Args:
            predict: (x_t, t) -> the student's prediction.
            noise: standard noise, float32 [B, C, H, W].
        """
        made = noise
        for start, end in zip(self.starts.to(noise.device), self.ends, strict=True):
            t, to = start.expand(len(noise)), end.to(noise.device).expand(len(noise))
            made = self.moved(made, self.noising.clean(made, predict(made, t).float(), t), t, to)
        return made

    def followed(
        self,
        noise: Tensor,
        t: Tensor,
        teacher: nn.Module,
        given: Given,
        empty: Tensor,
        places: np.ndarray,
    ) -> tuple[Tensor, Tensor]:
        """Return where a guided teacher passes a segment's start, and what to answer there.

        Args:
            noise: standard noise, float32 [B, C, H, W].
            t: starts of segments, int64 [B].
            teacher: called as (x, t, given, keep=None, empty=mask); frozen.
            given: the conditions.
            empty: which rows have the empty context, bool [B]: they stay unguided.
            places: which draws of the training these are, int64 [B].
        """

        def guided(x: Tensor, at: Tensor) -> Tensor:
            with_context = teacher(x, at, given, keep=None, empty=empty)
            if self.few.guidance_scale == 1.0:
                return with_context
            without = teacher(x, at, given, keep=None, empty=torch.ones_like(empty))
            return guide(with_context.float(), without.float(), self.few.guidance_scale, 0.0)

        drawn = places.tolist()
        if self.few.batches and self.answers.keys() >= set(drawn):
            passed = torch.stack([self.answers[place] for place in drawn], dim=1).to(noise.device)
        else:
            with torch.no_grad():
                passed = self.path(noise, guided)
            if self.few.batches:
                self.answers |= zip(drawn, passed.cpu().unbind(dim=1), strict=True)
        number, row = self.number(t), torch.arange(len(t), device=t.device)
        noisy, landed = passed[number, row], passed[number + 1, row]
        return noisy, self.target(noisy, landed, t)


def check_unweighted(options: Any) -> None:
    """Raise InputError if a student's recipe asks for min-SNR weights or for an identity loss.

    Args:
        options: a train recipe's `TrainingOptions`. An identity loss that is a system's default is
            not asked for; a student has none.
    """
    if options.few is None:
        return
    if options.min_snr_gamma:
        raise InputError(
            f"recipe field options.min_snr_gamma: {options.min_snr_gamma:g}; with options.few "
            "accepted is 0: a student's errors count where it lands"
        )
    if "identity" in options.model_fields_set and options.identity.weight:
        raise InputError(
            f"recipe field options.identity.weight: {options.identity.weight:g}; with options.few "
            "accepted is 0: a student follows its teacher's path and nothing else"
        )


def drawn_at(few: Few | None, step: int) -> tuple[int, int]:
    """Return whose draws a step has, and how often they came before."""
    if few is None or not few.batches:
        return step, 0
    return step % few.batches, step // few.batches


def load_followed(
    weights: Weights | None,
    stated: Callable[[dict[str, Any]], dict[str, Any]],
    wanted: dict[str, Any],
    build: Callable[[], nn.Module],
    check: Callable[[dict[str, Any]], None],
) -> nn.Module:
    """Load the denoiser that a student follows, frozen.

    Args:
        weights: `weights.denoiser` of the student's recipe.
        stated: takes from a file's config what decides: `system`, `model` and `process`.
        wanted: the same of the student.
        build: makes its network, as the student's.
        check: refuses a file's config whose facts the student's options do not fit.

    Raises:
        InputError: it is missing, a student itself, or of another system, shape or noise process,
            or `check` refuses it.
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
        check(config)
        return build()

    return load_denoiser(weights, built)[0]


def student(config: dict[str, Any], sampler: Sampler) -> Segments | None:
    """Return how a denoiser's file says to sample it, if it is a student's, else None.

    Args:
        config: the config of the file.
        sampler: the recipe's.

    Raises:
        InputError: the sampler asks for what the student has not learned.
    """
    if "few" not in config:
        return None
    few = checked(Few, config["few"], "denoiser file: few.")
    asked = (sampler.name, sampler.steps, sampler.guidance_scale, sampler.eta, sampler.spacing)
    if asked != ("ddim", few.steps, 1.0, 0.0, None):
        raise InputError(
            f"recipe field sampler: {sampler.name} of {sampler.steps} steps, guidance_scale "
            f"{sampler.guidance_scale:g}, eta {sampler.eta:g}, spacing "
            f"{sampler.spacing or 'null'}; the denoiser is a student that has learned ddim of "
            f"{few.steps} steps, guidance_scale 1 (the teacher's {few.guidance_scale:g} is in its "
            "weights), eta 0 and spacing null (the times are in its file)"
        )
    process = checked(Process, config["process"], "denoiser file: process.")
    return Segments(few, Noising(process))
