"""Sampling with noise that is keyed by position: each image has its own numpy generator."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factory.diffusion.schedule import Process, make_scheduler
from factory.recipe import Sampler
from factory.seeding import generator, seed64

Predict = Callable[[Tensor, Tensor], Tensor]
Given = Tensor | tuple[Tensor, ...] | None


def draw_noise(seeds: Sequence[int], shape: tuple[int, ...], step: int) -> Tensor:
    """Return standard normal noise, float32 [len(seeds), *shape].

    Args:
        seeds: one 64-bit seed for each image.
        shape: shape of one image's latents.
        step: 0 for the initial noise, n for the noise that the n-th sampling step adds; each step
            has a stream of its own.
    """
    rows = [
        generator(seed64(seed, "noise", step)).standard_normal(shape, np.float32) for seed in seeds
    ]
    return torch.from_numpy(np.stack(rows))


def sample_latents(
    predict: Predict,
    seeds: Sequence[int],
    shape: tuple[int, ...],
    process: Process,
    sampler: Sampler,
    device: torch.device | None = None,
    clip: bool = False,
) -> Tensor:
    """Run a sampler from noise to clean latents, float32 [B, *shape].

    Args:
        predict: (noisy latents [B, *shape], time steps [B]) -> noise or velocity, guided or not.
        seeds: one 64-bit seed for each image; an image does not depend on others of the batch.
        shape: shape of one image's latents.
        process: the noise process that the network was trained with.
        sampler: name, steps and eta.
        device: the device to compute on; default: the CPU. Noise is always drawn on the CPU.
        clip: hold x0-hat to -1 ... 1, the range of pixels; only `ddpm` and `ddim` can do this.
    """
    scheduler = make_scheduler(process, sampler, clip)
    x = draw_noise(seeds, shape, 0).to(device) * scheduler.init_noise_sigma
    for number, t in enumerate(scheduler.timesteps, start=1):
        steps = torch.full((len(seeds),), int(t), dtype=torch.long, device=device)
        predicted = predict(x, steps).float()
        if sampler.name == "ddpm":
            x = _ancestral_step(scheduler, predicted, int(t), x, seeds, number)
        elif sampler.name == "ddim" and sampler.eta > 0.0:
            noise = draw_noise(seeds, shape, number).to(device)
            x = scheduler.step(predicted, t, x, eta=sampler.eta, variance_noise=noise).prev_sample
        else:
            x = scheduler.step(predicted, t, x).prev_sample
    return x


def _ancestral_step(
    scheduler: Any, predicted: Tensor, t: int, x: Tensor, seeds: Sequence[int], number: int
) -> Tensor:
    """Take one DDPM step (Ho et al. 2020, equation 7) with sqrt(beta) times noise by position.

    diffusers' own step draws from a torch generator, which keeps only 32 bits of a seed.
    """
    previous = int(scheduler.previous_timestep(t))
    kept = scheduler.alphas_cumprod[t]
    kept_before = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.one
    alpha = kept / kept_before
    beta = 1.0 - alpha
    if scheduler.config.prediction_type == "epsilon":
        clean = (x - (1.0 - kept).sqrt() * predicted) / kept.sqrt()
    else:
        clean = kept.sqrt() * x - (1.0 - kept).sqrt() * predicted
    if scheduler.config.clip_sample:
        clean = clean.clamp(-1.0, 1.0)
    mean = (
        kept_before.sqrt() * beta / (1.0 - kept) * clean
        + alpha.sqrt() * (1.0 - kept_before) / (1.0 - kept) * x
    )
    if previous < 0:
        return mean
    return mean + beta.sqrt() * draw_noise(seeds, tuple(x.shape[1:]), number).to(x.device)


def guided(
    network: Callable[..., Tensor],
    given: Given,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
    timesteps: int = 1000,
) -> Predict:
    """Return a predictor with classifier-free guidance, u + scale (c - u) (docs/papers.md 5).

    Args:
        network: called as (x, t, given, keep=None, empty=mask); unless `scale` is 1, its empty
            context must have been learned.
        given: the conditions of the images, a tensor or a tuple of tensors [B, ...]; None samples
            without an identity.
        scale: 1 is off and calls the network once.
        interval: guidance is on while t/T lies in this interval, both ends included (Kynkaanniemi
            et al. 2024).
        rescale: how far the guided prediction gets the conditional one's spread back, 0 to 1, since
            guidance saturates colours (Lin et al. 2024, equations 15 and 16).
        timesteps: T.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        share = float(t[0]) / timesteps
        if given is None or scale == 1.0 or not interval[0] <= share <= interval[1]:
            return network(x, t, given, keep=None, empty=None)
        batch = len(x)
        empty = torch.arange(2 * batch, device=x.device) >= batch
        both = network(_twice(x), _twice(t), _doubled(given), keep=None, empty=empty)
        with_context, without = both.float().chunk(2)
        return guide(with_context, without, scale, rescale)

    return predict


def _twice(part: Tensor) -> Tensor:
    return torch.cat([part, part])


def _doubled(given: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return _twice(given) if isinstance(given, Tensor) else tuple(map(_twice, given))


def guide(with_context: Tensor, without: Tensor, scale: float, rescale: float) -> Tensor:
    """Combine two predictions [B, C, H, W] to u + scale (c - u), then rescale the spread."""
    combined = without + scale * (with_context - without)
    if not rescale:
        return combined
    dims = tuple(range(1, combined.ndim))
    factor = with_context.std(dims, keepdim=True) / combined.std(dims, keepdim=True)
    return combined * (rescale * factor + (1.0 - rescale))
