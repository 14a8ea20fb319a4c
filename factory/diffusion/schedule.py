"""The noise process: the noise at each step, the network's target, and what a prediction implies.

Betas and samplers come from diffusers. This module adds the closed forms that the losses need
(docs/papers.md 0.2; Ho et al. 2020, equations 4 and 15; Salimans and Ho 2022 for velocity; Hang et
al. 2023 for min-SNR).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from factory.recipe import Part, Positive, Sampler


@contextmanager
def _light() -> Iterator[None]:
    """Import diffusers in the block without two modules that its schedulers import in vain.

    torch's compiler and scipy's statistics take longer to import than everything else that a worker
    needs, and our use never calls them. An import after the block gets the real modules.
    """
    unused = {"torch._dynamo": ModuleType("torch._dynamo"), "scipy.stats": ModuleType("stats")}
    unused["torch._dynamo"].__dict__["allow_in_graph"] = lambda made: made  # a decorator
    absent = {name: module for name, module in unused.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with _light():
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    )

SPACINGS: dict[str, Any] = {  # ours -> diffusers'
    "trailing": "trailing",
    "leading": "leading",
    "even": "linspace",
}


class Process(Part):
    """The noise process of a training; the weights' file keeps it for sampling."""

    timesteps: Positive = 1000
    beta_start: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-4
    beta_end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    schedule: Literal["linear", "scaled_linear"] = Field(
        default="linear",
        description="Whether betas or, as in latent diffusion, their roots are evenly spaced.",
    )
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_terminal_snr: bool = Field(
        default=False, description="Rescale betas so that the last step is pure noise."
    )

    @model_validator(mode="after")
    def _predictable(self) -> "Process":
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "prediction is epsilon; zero_terminal_snr needs v_prediction, since its first step "
                "starts from pure noise, whose noise says nothing of the image"
            )
        return self

    @model_serializer(mode="wrap")
    def _stated(self, stated: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the schedule that once was the only one: files of weights keep their bytes."""
        fields = stated(self)
        return {k: v for k, v in fields.items() if (k, v) != ("schedule", "linear")}


class Noising:
    """The closed forms of a process; latents are float [B, C, H, W], time steps are integers [B].

    Attributes:
        process: the process.
        kept: float64 [T], the cumulative products of 1 - beta (alpha-bar).
    """

    def __init__(self, process: Process) -> None:
        """Compute the schedule."""
        self.process = process
        self.kept = DDPMScheduler(**_betas(process)).alphas_cumprod.double()

    def signal(self, t: Tensor) -> Tensor:
        """Return sqrt(alpha-bar), float32 [B, 1, 1, 1]."""
        return self.kept.to(t.device)[t].sqrt().float()[:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        """Return sqrt(1 - alpha-bar), float32 [B, 1, 1, 1]."""
        return (1.0 - self.kept.to(t.device)[t]).sqrt().float()[:, None, None, None]

    def gamma(self, t: Tensor) -> Tensor:
        """Return t / T, float32 [B]."""
        return t.float() / self.process.timesteps

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t, the noisy latents."""
        return self.signal(t) * clean + self.sigma(t) * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the network's target: the noise or the velocity."""
        if self.process.prediction == "epsilon":
            return noise
        return self.signal(t) * noise - self.sigma(t) * clean

    def clean(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """Return x0-hat, the clean latents that a prediction implies."""
        if self.process.prediction == "epsilon":
            return (noisy - self.sigma(t) * predicted) / self.signal(t)
        return self.signal(t) * noisy - self.sigma(t) * predicted

    def noise(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """Return eps-hat, the noise that a prediction implies."""
        if self.process.prediction == "epsilon":
            return predicted
        return self.sigma(t) * noisy + self.signal(t) * predicted

    def moved(self, predicted: Tensor, change: Tensor, t: Tensor) -> Tensor:
        """Return the prediction whose implied noise is higher by `change` at the same x_t.

        Velocity is (eps - sigma x_t) / signal, so it changes by change / signal.
        """
        return predicted + (
            change if self.process.prediction == "epsilon" else change / self.signal(t)
        )

    def weight(self, t: Tensor, min_snr_gamma: float) -> Tensor:
        """Return the loss weight of each sample, float32 [B]; ones if the gamma is 0.

        It is min(SNR, gamma) / SNR for noise and min(SNR, gamma) / (SNR + 1) for velocity.
        """
        if not min_snr_gamma:
            return torch.ones(len(t), device=t.device)
        kept = self.kept.to(t.device)[t]
        snr = kept / (1.0 - kept)
        capped = snr.clamp_max(min_snr_gamma)
        divisor = snr if self.process.prediction == "epsilon" else snr + 1.0
        return (capped / divisor).float()


def make_scheduler(process: Process, sampler: Sampler, clip: bool = False) -> Any:
    """Return diffusers' scheduler for a sampler, with its time steps set.

    `clip` holds x0-hat to -1 ... 1 at every step, as DCFace does for pixels (docs/papers.md 1.3);
    the two multistep solvers cannot and ignore it.

    `ddpm` takes sqrt(beta) as its standard deviation (papers.md 2.4). DDIM's steps are the trailing
    ones, so that the first is the noisiest, unless `sampler.spacing` says otherwise: `leading`, as
    DCFace's code has it, is 980, 960 ... 0 of 50 steps. `even` is K evenly spaced numbers from 0 to
    T - 1, rounded (Nichol and Dhariwal 2021, section 4). DPM-Solver++ and UniPC space theirs evenly
    in log SNR: even time steps leave the last, noise-free part of the way to one step, and detail a
    tenth as strong as the image comes out at a third of its strength (16 steps, Gaussian data).
    `sampler.spacing` even takes DPM-Solver++'s own time steps all the same, as published scripts
    do: 999, 959 ... 40 of 25 steps.

    `sampler.offset` of 1, as Stable Diffusion has it, makes DDIM's leading steps 981, 961 ... 1 of
    50; the last then ends at step 0 of the process, not beyond it.
    """
    shared = _betas(process)
    if sampler.name == "ddpm":
        spaced = SPACINGS[sampler.spacing or "leading"]
        made: Any = DDPMScheduler(
            **shared, variance_type="fixed_large", clip_sample=clip, timestep_spacing=spaced
        )
    elif sampler.name == "ddim":
        spaced = SPACINGS[sampler.spacing or "trailing"]
        made = DDIMScheduler(
            **shared,
            clip_sample=clip,
            timestep_spacing=spaced,
            steps_offset=sampler.offset,
            set_alpha_to_one=not sampler.offset,
        )
    elif sampler.name == "dpmsolver++":
        made = DPMSolverMultistepScheduler(
            **shared, algorithm_type="dpmsolver++", use_lu_lambdas=sampler.spacing is None
        )
    else:
        made = UniPCMultistepScheduler(**shared, use_exponential_sigmas=True)
    made.set_timesteps(sampler.steps)
    return made


def _betas(process: Process) -> dict[str, Any]:
    return {
        "num_train_timesteps": process.timesteps,
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "beta_schedule": process.schedule,
        "prediction_type": process.prediction,
        "rescale_betas_zero_snr": process.zero_terminal_snr,
    }
