"""IDiff-Face (Boutros et al., ICCV 2023): an identity embedding steers a latent diffusion model.

Read it beside the paper. Trained: the context of an image is its own embedding under the teacher;
contextual partial dropout keeps the denoiser from reading more than the identity out of it.
Sampled: a synthetic context, drawn uniformly on the sphere or in two stages, gives one person, and
fresh noise gives that person's images. The context does not vary within an identity.

Beyond the paper, each off by default: a learned empty context with guidance, contexts from another
image of the same person, min-SNR weights, and an identity loss through decoder and teacher.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from factory.diffusion.autoencoder import VQConfig, make_autoencoder, to_images, to_pixels
from factory.diffusion.conditioning import draw_masks
from factory.diffusion.files import (
    RANDOM_INIT,
    load_autoencoder,
    load_denoiser,
    load_state,
    read_metadata,
    save_weights,
)
from factory.diffusion.latents import embed, encoder_digest, latent_set
from factory.diffusion.losses import draw_glances, glance
from factory.diffusion.sampling import guided, sample_latents
from factory.diffusion.schedule import Noising, Process
from factory.diffusion.trainable import Place, Trainable
from factory.diffusion.unet import UNet, UNetConfig
from factory.provenance import checked_sha256
from factory.recipe import (
    Backbone,
    Fraction,
    InputError,
    Part,
    Sampler,
    TrainRecipe,
    Weights,
    checked,
    digest,
)
from factory.recognition.backbones import make_backbone
from factory.recognition.recognizers import Recognizer, load_recognizer
from factory.seeding import generator, seed64
from factory.shards.claim import read_claim
from factory.shards.feed import Feed
from factory.shards.store import Store
from factory.studio.people import person
from factory.studio.render import render
from factory.studio.views import draw_view_kind
from factory.systems.base import Conditions, Position, Rendered, System

CACHE_SEED = 1  # the order in which latents are kept is the same for all recipes
STUDIO_SIZE = 112  # a gallery picture is rendered at this size where the teacher takes more


class SamplingOptions(Part):
    """IDiff-Face's own fields of a generate recipe; CPD belongs to the weights."""

    guidance_interval: tuple[Fraction, Fraction] = Field(
        default=(0.0, 1.0), description="Guidance is on where t/T lies inside."
    )
    guidance_rescale: Fraction = Field(
        default=0.0, description="How far guidance's spread returns to the unguided one's."
    )
    first_stage_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Sampler steps of two_stage's first image; default the sampler's."
    )


class IDiffFace(System):
    """Sample faces of synthetic identities from a trained denoiser."""

    name = "idiff_face"
    Options = SamplingOptions
    sources = ("uniform", "two_stage", "gallery")
    weights = ("denoiser", "autoencoder", "teacher")

    def check(self) -> None:
        """Refuse a recipe without a sampler, or with an eta its sampler has not."""
        recipe = self.recipe
        if recipe.sampler is None:
            raise InputError(f"recipe field sampler: missing; {self.name} needs one")
        if recipe.sampler.eta and recipe.sampler.name != "ddim":
            raise InputError(
                f"recipe field sampler.eta: {recipe.sampler.eta}; {recipe.sampler.name} accepts 0"
            )

    def load(self) -> None:
        """Load denoiser, autoencoder and teacher, and check that they belong together."""
        recipe = self.recipe
        assert recipe.sampler is not None
        self.sampler: Sampler = recipe.sampler
        self.device = torch.device("cuda" if recipe.pool.num_gpus else "cpu")
        for name in ("denoiser", "autoencoder"):
            facts = read_metadata(recipe.weights[name], name, name)
            if facts.get("random_init"):
                raise InputError(
                    f"recipe field weights.{name}.location: {recipe.weights[name].location} was "
                    f"trained with random-init {facts['random_init']}: it draws no faces"
                )
        unet, config = load_denoiser(recipe.weights["denoiser"])
        self.unet = unet.to(self.device)
        self.process = checked(Process, config["process"], "denoiser file: process.")
        self.autoencoder = load_autoencoder(recipe.weights["autoencoder"]).to(self.device)
        teacher = recipe.weights["teacher"].location
        self.teacher = load_recognizer(teacher, device=self.device)
        self._fits()

    def _fits(self) -> None:
        size, model = self.autoencoder.config.size, self.unet.config
        if size != self.recipe.image.size:
            raise InputError(
                f"recipe field image.size: {self.recipe.image.size}; the autoencoder makes {size}"
            )
        if self.teacher.dimension != model.context_size:
            raise InputError(
                f"recipe field weights.teacher.location: embeddings of {self.teacher.dimension}; "
                f"the denoiser accepts {model.context_size}"
            )
        guides = self.sampler.guidance_scale > 1.0 or self.recipe.identities.source == "two_stage"
        if guides and not model.learn_empty_context:
            raise InputError(
                "recipe field weights.denoiser.location: the denoiser has no learned empty context;"
                " accepted are sampler.guidance_scale 1 and identities.source uniform or gallery"
            )

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return unit contexts, float32 [n, D], each a function of its index alone.

        `uniform` draws on the sphere, `two_stage` embeds an image sampled without an identity,
        `gallery` embeds a frontal picture of a studio person no generator has seen.
        """
        source, seed = self.recipe.identities.source, self.recipe.seed
        seeds = [seed64(seed, "context", index) for index in indices]
        if source == "uniform":
            shape = self.unet.config.context_size
            drawn = np.stack([generator(one).standard_normal(shape) for one in seeds])
            return _unit(drawn)
        if source == "two_stage":
            return self._embedded(self._first_stage(seeds))
        return self._embedded(
            np.stack(
                [
                    render(
                        person("gallery", index),
                        draw_view_kind(one, "frontal"),
                        self.recipe.image.size,
                    )
                    for index, one in zip(indices, seeds, strict=True)
                ]
            )
        )

    def _first_stage(self, seeds: Sequence[int]) -> np.ndarray:
        """Return images sampled with the empty context, uint8 [n, S, S, 3]."""
        steps = self.options.first_stage_steps or self.sampler.steps
        sampler = self.sampler.model_copy(update={"steps": steps})
        size = self.sampler.batch_size
        return np.concatenate(
            [self._images(None, filled, sampler)[:count] for filled, count in _filled(seeds, size)]
        )

    @torch.inference_mode()
    def _embedded(self, images: np.ndarray) -> np.ndarray:
        assert self.teacher.module is not None
        found = []
        for rows, count in _filled(range(len(images)), self.sampler.batch_size):
            pixels = to_pixels(torch.from_numpy(images[list(rows)])).to(self.device)
            made = embed(self.teacher.module, self.teacher.size, pixels)
            found.append(made.cpu().numpy()[:count])
        return np.concatenate(found)

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Return the contexts unchanged: all variation is the noise's; the target cosine is 1."""
        return Conditions(context=contexts, target=np.ones(len(positions), np.float32))

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Return the images of one batch, uint8 [B, S, S, 3]."""
        seeds = [position.seed(self.recipe.seed) for position in positions]
        context = torch.from_numpy(np.ascontiguousarray(conditions.context, np.float32))
        images = self._images(context, seeds, self.sampler)
        return Rendered(images, [{} for _ in positions])

    @torch.inference_mode()
    def _images(self, context: Tensor | None, seeds: Sequence[int], sampler: Sampler) -> np.ndarray:
        predict = guided(
            self.unet,
            None if context is None else context.to(self.device),
            sampler.guidance_scale,
            self.options.guidance_interval,
            self.options.guidance_rescale,
            self.process.timesteps,
        )
        shape = _latent_shape(self.unet.config)
        low = self.sampler.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            latents = sample_latents(predict, seeds, shape, self.process, sampler, self.device)
            return to_images(self.autoencoder.decode(latents)).cpu().numpy()


class IdentityLoss(Part):
    """1 - cos(teacher(decode(x0-hat)), context), where the time step lets the face be seen."""

    weight: Annotated[float, Field(ge=0.0)] = 0.0
    max_t: Fraction = Field(default=0.5, description="Only where t/T is below this.")
    after: Fraction = Field(default=0.0, description="Share of the training it waits.")
    glances: bool = Field(
        default=True, description="Move, blur and roughen the images before the teacher looks."
    )


class TrainingOptions(Part):
    """IDiff-Face's own fields of a train recipe; the defaults are the paper's."""

    process: Process = Process()
    empty_context_prob: Fraction = 0.0
    other_image_prob: Fraction = Field(
        default=0.0, description="How often the context is another image's of the same person."
    )
    min_snr_gamma: Annotated[float, Field(ge=0.0)] = Field(default=0.0, description="0 is off.")
    identity: IdentityLoss = IdentityLoss()
    teacher_backbone: Literal["r18", "r34", "r50", "r100"] = Field(
        default="r100", description="Only for a teacher of random-init: its network."
    )


class _Recipe(Part):
    """The two free parts of a train recipe, checked against each other."""

    model: UNetConfig
    options: TrainingOptions

    @model_validator(mode="after")
    def _learned(self) -> "_Recipe":
        if self.options.empty_context_prob and not self.model.learn_empty_context:
            raise ValueError(
                f"options.empty_context_prob is {self.options.empty_context_prob}, "
                "model.learn_empty_context false accepts 0"
            )
        return self


@dataclass(frozen=True)
class LatentBatch:
    """One worker's part of a training batch; B images.

    Attributes:
        clean: latents [B, C, H, W]; noise: standard noise of their shape.
        t: time steps, int64 [B] in [0, T).
        context: unit embeddings [B, D].
        keep, empty: masks of `draw_masks`.
        looks: draws for the identity loss, as `glance` takes them; None while it is off.
    """

    clean: Tensor
    noise: Tensor
    t: Tensor
    context: Tensor
    keep: Tensor
    empty: Tensor
    looks: tuple[Tensor, Tensor, Tensor, Tensor] | None


class IDiffFaceTraining(Trainable):
    """Train the denoiser: mean squared error of noise or velocity, and the extras asked for."""

    file_name = "denoiser.safetensors"

    def __init__(self, recipe: TrainRecipe, place: Place) -> None:
        """Check the recipe, compute or find the latents, make the network."""
        super().__init__(recipe, place)
        parts = checked(_Recipe, {"model": recipe.model, "options": recipe.options}, "recipe field")
        self.config, self.options = parts.model, parts.options
        self.device = torch.device("cuda" if recipe.engine.num_gpus else "cpu")
        self.noising = Noising(self.options.process)
        self._load_frozen(recipe)
        self.module = UNet(self.config)
        if "start" in recipe.weights:
            read_metadata(recipe.weights["start"], "start", "denoiser")
            load_state(recipe.weights["start"], self.module, "start")
        self._load_data(recipe, place)

    def _load_frozen(self, recipe: TrainRecipe) -> None:
        for name in ("autoencoder", "teacher"):
            if name not in recipe.weights:
                raise InputError(f"recipe field weights.{name}: missing; {recipe.system} needs it")
        fresh = tuple(
            name
            for name in ("autoencoder", "teacher")
            if recipe.weights[name].location == RANDOM_INIT
        )
        self.random_init = fresh
        if "autoencoder" in fresh:
            self.autoencoder = make_autoencoder(VQConfig(size=recipe.image.size))
            self.autoencoder.eval().requires_grad_(False)
        else:
            self.autoencoder = load_autoencoder(recipe.weights["autoencoder"])
        self.autoencoder.to(self.device)
        if "teacher" in fresh:
            backbone = Backbone(
                name=self.options.teacher_backbone, embedding_size=self.config.context_size
            )
            self.teacher, self.teacher_size = make_backbone(backbone, STUDIO_SIZE), STUDIO_SIZE
            self.teacher.eval().requires_grad_(False)
        else:
            self.teacher, self.teacher_size = _torch_teacher(recipe.weights["teacher"])
        self.teacher.to(self.device)
        if self.autoencoder.config.size != recipe.image.size:
            raise InputError(
                f"recipe field image.size: {recipe.image.size}; the autoencoder accepts "
                f"{self.autoencoder.config.size}"
            )

    def _load_data(self, recipe: TrainRecipe, place: Place) -> None:
        data = recipe.data
        feed = Feed(
            data.urls(), 1, CACHE_SEED, recipe.image.size, data.identities, data.images_each
        )
        held = {url: read_claim(Store(url))["content_digest"] for url in data.urls()}
        sources = {
            "data": digest([held, data.identities, data.images_each]),
            "autoencoder": encoder_digest(self.autoencoder),
            "teacher": _named(recipe, "teacher"),
        }
        low = recipe.engine.precision == "bfloat16"
        self.data = latent_set(
            feed, self.autoencoder, self.teacher, self.teacher_size, sources, place.cache, low
        )
        feed.close()
        shape = tuple(self.data.latents.shape[2:])
        if shape != _latent_shape(self.config):
            raise InputError(
                f"recipe field model.latent_channels, latent_size: "
                f"{_latent_shape(self.config)}; the autoencoder makes {shape}"
            )
        if self.data.embeddings.shape[2] != self.config.context_size:
            raise InputError(
                f"recipe field model.context_size: {self.config.context_size}; the teacher's "
                f"embeddings have {self.data.embeddings.shape[2]}"
            )
        self.steps_per_epoch = len(self.data) // recipe.schedule.batch_size
        if not self.steps_per_epoch:
            raise InputError(
                f"recipe field schedule.batch_size: {recipe.schedule.batch_size}; there are "
                f"{len(self.data)} images"
            )

    def batches(self, start: int, stop: int) -> Iterator[LatentBatch]:
        """Yield this worker's part of each batch; the draws are those of the whole batch."""
        size, seed = self.recipe.schedule.batch_size, self.recipe.seed
        each = size // self.place.world
        part = slice(self.place.rank * each, (self.place.rank + 1) * each)
        order, epoch_held = np.empty(0, np.int64), -1
        for step in range(start, stop):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != epoch_held:
                order = generator(seed64(seed, "order", epoch)).permutation(len(self.data))
                epoch_held = epoch
            rows = order[number * size : (number + 1) * size]
            yield self._batch(rows, step, part)

    def _batch(self, rows: np.ndarray, step: int, part: slice) -> LatentBatch:
        data, count = self.data, len(rows)
        draws = generator(seed64(self.recipe.seed, "denoiser", step))
        flip = (draws.random(count) < 0.5).astype(np.int64)
        other = draws.random(count) < self.options.other_image_prob
        label = data.labels[rows]
        span = data.first[label + 1] - data.first[label]
        peer = data.peers[data.first[label] + (draws.random(count) * span).astype(np.int64)]
        seen = np.where(other, peer, rows)
        # One time step from each of `count` equal parts of [0, T): uniform, with less variance.
        share = (draws.permutation(count) + draws.random(count)) / count
        t = np.minimum(
            (share * self.options.process.timesteps).astype(np.int64),
            self.options.process.timesteps - 1,
        )
        noise = draws.standard_normal((count, *data.latents.shape[2:]), np.float32)
        keep, empty = draw_masks(
            seed64(self.recipe.seed, "masks", step),
            count,
            self.config.context_channels,
            self.config.cpd_rate,
            self.options.empty_context_prob,
        )
        looks = None
        identity, size = self.options.identity, self.recipe.image.size
        if identity.weight and step >= identity.after * self.total_steps:
            grain = torch.from_numpy(draws.standard_normal((count, 3, size, size), np.float32))
            theta, sigma, strength = draw_glances(draws, count)
            looks = (
                self._put(theta[part]),
                self._put(sigma[part]),
                self._put(strength[part]),
                self._put(grain[part]),
            )
        clean = torch.from_numpy(data.latents[flip, rows].astype(np.float32))
        context = torch.from_numpy(data.embeddings[flip, seen].astype(np.float32))
        return LatentBatch(
            self._put(clean[part]).contiguous(memory_format=torch.channels_last),
            self._put(torch.from_numpy(noise)[part]),
            self._put(torch.from_numpy(t)[part]),
            self._put(context[part]),
            self._put(keep[part]),
            self._put(empty[part]),
            looks,
        )

    def _put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def loss(self, module: nn.Module, batch: LatentBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted error and, where it is on, the identity loss."""
        noisy = self.noising.noised(batch.clean, batch.noise, batch.t)
        predicted = module(noisy, batch.t, batch.context, batch.keep, batch.empty).float()
        wanted = self.noising.target(batch.clean, batch.noise, batch.t)
        error = (predicted - wanted).square().mean(dim=(1, 2, 3))
        loss = (self.noising.weight(batch.t, self.options.min_snr_gamma) * error).mean()
        numbers = {"error": float(error.detach().mean())}
        if batch.looks is not None:
            identity, cosine = self._identity(noisy, predicted, batch, batch.looks)
            loss = loss + self.options.identity.weight * identity
            numbers["cosine"] = cosine
        return loss, numbers

    def _identity(
        self,
        noisy: Tensor,
        predicted: Tensor,
        batch: LatentBatch,
        looks: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, float]:
        """Return the identity loss over the batch and the mean cosine where it looked.

        A sample counts by how much of its face the time step lets through, sqrt(alpha-bar); one
        whose context was replaced by the empty one does not count.
        """
        options = self.options.identity
        near = (self.noising.gamma(batch.t) < options.max_t) & ~batch.empty
        rows = near.nonzero()[:, 0]
        if not len(rows):
            return predicted.new_zeros(()), 0.0
        t = batch.t[rows]
        made = self.autoencoder.decode(self.noising.clean(noisy[rows], predicted[rows], t))
        if options.glances:
            made = glance(made, *(look[rows] for look in looks))
        cosine = (embed(self.teacher, self.teacher_size, made) * batch.context[rows]).sum(dim=1)
        weight = self.noising.signal(t)[:, 0, 0, 0]
        loss = (weight * (1.0 - cosine)).sum() / len(batch.t)
        return loss, float(cosine.detach().mean())

    def samples(self, module: nn.Module) -> np.ndarray:
        """Return four rows: a training image of a context, then seven samples of that context."""
        assert isinstance(module, UNet)
        people, each = 4, 7
        rows = np.arange(people)
        context = torch.from_numpy(self.data.embeddings[0, rows].astype(np.float32))
        context = self._put(context).repeat_interleave(each, dim=0)
        seeds = [seed64(0, "samples", n) for n in range(people * each)]
        sampler = Sampler(name="dpmsolver++", steps=16)
        low = self.recipe.engine.precision == "bfloat16"
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=low),
        ):
            shape = _latent_shape(self.config)
            predict = guided(module, context, 1.0)
            latents = sample_latents(
                predict, seeds, shape, self.options.process, sampler, self.device
            )
            originals = torch.from_numpy(self.data.latents[0, rows].astype(np.float32))
            made = self.autoencoder.decode(latents)
            shown = self.autoencoder.decode(self._put(originals))
        images = to_images(made).cpu().numpy()
        images = images.reshape(people, each, *images.shape[1:])
        return np.concatenate([to_images(shown).cpu().numpy()[:, None], images], axis=1)

    def save(self, module: nn.Module, path: Path, facts: dict[str, str]) -> None:
        """Write the denoiser with its sizes and its noise process."""
        config: dict[str, Any] = {
            "model": self.config.model_dump(mode="json"),
            "process": self.options.process.model_dump(mode="json"),
            "trained_with": {
                name: _named(self.recipe, name) for name in ("autoencoder", "teacher")
            },
        }
        save_weights(path, "denoiser", module, json.loads(json.dumps(config)), facts)


def _torch_teacher(weights: Weights) -> tuple[nn.Module, int]:
    teacher: Recognizer = load_recognizer(weights.location)
    if teacher.module is None:
        raise InputError(
            f"recipe field weights.teacher.location: {weights.location} cannot be differentiated; "
            "accepted are torch recognizers"
        )
    return teacher.module, teacher.size


def _named(recipe: TrainRecipe, name: str) -> str:
    """Return the sha256 of a file of weights, or the word for fresh ones."""
    weights = recipe.weights[name]
    return RANDOM_INIT if weights.location == RANDOM_INIT else checked_sha256(name, weights)


def _filled(items: Sequence[int], size: int) -> Iterator[tuple[list[int], int]]:
    """Yield batches of one size, the last filled up by repeating, with how many of each count.

    Shapes do not change then, and an item's last bits do not depend on how many were asked for.
    """
    for start in range(0, len(items), size):
        part = list(items[start : start + size])
        yield part + [part[-1]] * (size - len(part)), len(part)


def _latent_shape(config: UNetConfig) -> tuple[int, int, int]:
    return (config.latent_channels, config.latent_size, config.latent_size)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


SYSTEM = IDiffFace
TRAINING = IDiffFaceTraining
