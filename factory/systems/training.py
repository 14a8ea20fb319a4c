"""Training of a system's denoiser: the batches and the losses of one training loop.

A system supplies its network, its conditions and its identity loss. This module holds what they
share: noise, masks and draws keyed by position.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from factory.datasets.composition import source_digest
from factory.datasets.feed import Feed
from factory.datasets.provenance import checked_sha256
from factory.datasets.store import Store
from factory.diffusion.autoencoder import VQConfig, make_autoencoder, to_images
from factory.diffusion.conditioning import draw_masks
from factory.diffusion.distillation import Few, Segments, check_unweighted, drawn_at, load_followed
from factory.diffusion.examples import (
    Examples,
    ExampleSource,
    Frozen,
    embed,
    encoder_digest,
    load_examples,
)
from factory.diffusion.files import (
    RANDOM_INIT,
    load_autoencoder,
    load_state,
    read_metadata,
    save_weights,
)
from factory.diffusion.losses import draw_glances, glance
from factory.diffusion.sampling import Given, draw_noise, guided, sample_latents
from factory.diffusion.schedule import Noising, Process
from factory.diffusion.trainable import Place, Trainable
from factory.recipe import (
    Backbone,
    Fraction,
    InputError,
    Part,
    Sampler,
    TrainRecipe,
    checked,
    digest,
)
from factory.recognition.backbones import make_backbone
from factory.recognition.recognizers import load_recognizer
from factory.seeding import generator, seed64

CACHE_SEED = 1  # one seed for all recipes, so that they share the cached examples
TEACHER_SIZE = 112  # image size in pixels of a random-init teacher


class IdentityLoss(Part):
    """A loss on the teacher's embedding of x0-hat, at time steps with little enough noise."""

    weight: Annotated[float, Field(ge=0.0)] = 0.0
    max_t: Fraction = Field(default=0.5, description="The loss counts only if t/T is below this.")
    after: Fraction = Field(default=0.0, description="Share of the training before it starts.")
    glances: bool = Field(
        default=True, description="Move, blur and add noise to images before the teacher sees them."
    )


class TrainingOptions(Part):
    """The fields of a train recipe's `options` that every diffusion system accepts."""

    process: Process = Process()
    empty_context_prob: Fraction = 0.0
    min_snr_gamma: Annotated[float, Field(ge=0.0)] = Field(default=0.0, description="0 is off.")
    identity: IdentityLoss = IdentityLoss()
    few: Few | None = Field(
        default=None,
        description="Distil weights.denoiser into a student of a few steps.",
    )
    teacher_backbone: Literal["r18", "r34", "r50", "r100"] = Field(
        default="r100", description="The network of a random-init teacher."
    )


@dataclass(frozen=True)
class Drawn:
    """The arrays that a system draws for a whole batch of B images.

    Attributes:
        given: arrays [B, ...] that condition the network, in the order in which it takes them.
        wanted: further arrays [B, ...] that the losses need, by name.
    """

    given: tuple[np.ndarray, ...]
    wanted: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class DenoiserBatch:
    """One worker's part of a training batch, B images.

    Attributes:
        rows: rows of the examples, int64 [B].
        keys: keys of their samples, ASCII bytes [B].
        clean: latents or pixels [B, C, H, W].
        noise: standard noise of the same shape.
        t: time steps, int64 [B] in [0, T).
        places: which draws of the training these are, int64 [B].
        given, wanted: the arrays of `Drawn`.
        keep, empty: masks of `draw_masks`.
        looks: draws for the identity loss, as `glance` takes them; empty without glances, None
            while the loss is off.
    """

    rows: np.ndarray
    keys: np.ndarray
    clean: Tensor
    noise: Tensor
    t: Tensor
    places: np.ndarray
    given: tuple[Tensor, ...]
    wanted: dict[str, Tensor]
    keep: Tensor
    empty: Tensor
    looks: tuple[Tensor, ...] | None


class DenoiserTraining(Trainable):
    """Train a denoiser: weighted squared error of noise or velocity, and an identity loss.

    Subclasses set `system`, the recipe parts `Model` and `Options` and the `kinds` of examples that
    they read, and implement the abstract methods.
    """

    file_name = "denoiser.safetensors"
    system: ClassVar[str]
    Model: ClassVar[type[Part]]
    Options: ClassVar[type[TrainingOptions]] = TrainingOptions
    kinds: tuple[str, ...] = ("embeddings",)
    fresh: ClassVar[tuple[str, ...]] = ()  # parameters that `weights.start` may lack
    in_latents: ClassVar[bool | None] = None  # None: with weights.autoencoder, else on pixels
    mask_channels: int = 1
    cpd_rate: float = 0.0

    def __init__(self, recipe: TrainRecipe, place: Place) -> None:
        """Check the recipe and load the frozen networks."""
        super().__init__(recipe, place)
        self.config: Any = checked(self.Model, recipe.model, "recipe field model.")
        self.options: Any = checked(self.Options, recipe.options, "recipe field options.")
        self.check()
        self.device = torch.device("cuda" if recipe.engine.num_gpus else "cpu")
        self.noising = Noising(self.options.process)
        few = self.options.few
        self.segments = None if few is None else Segments(few, self.noising)
        check_unweighted(self.options)
        self._load_frozen()

    def load(self) -> Self:
        """Make the network, and compute the examples or read them from the cache."""
        recipe = self.recipe
        self.module = self.build()
        if self.segments is not None:
            self._load_followed()
        if "start" in recipe.weights and recipe.weights["start"].location != RANDOM_INIT:
            read_metadata(recipe.weights["start"], "start", "denoiser")
            load_state(recipe.weights["start"], self.module, "start", self.fresh)
        self._load_examples()
        self.fits()
        return self

    def check(self) -> None:
        """Raise InputError if the recipe contradicts itself; called before anything is loaded."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the network; it is called as (x, t, given, keep=, empty=), see `taken`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the tensors that the network denoises."""
        return self.config.shape

    def check_empty(self) -> None:
        """Refuse to draw an empty context if the model learns none."""
        if self.options.empty_context_prob and not self.config.learn_empty_context:
            raise InputError(
                f"recipe field options.empty_context_prob is {self.options.empty_context_prob}, "
                "model.learn_empty_context false accepts 0"
            )

    @abstractmethod
    def draw(self, draws: np.random.Generator, rows: np.ndarray, flip: np.ndarray) -> Drawn:
        """Draw the conditions of a whole batch.

        Args:
            draws: the batch's generator.
            rows: rows of the examples, int64 [B].
            flip: 1 if the mirrored image is the target, else 0, int64 [B].
        """

    @abstractmethod
    def identity_loss(self, seen: Tensor, batch: DenoiserBatch, rows: Tensor) -> Tensor:
        """Return the identity loss of each image that the teacher saw, float [n].

        Args:
            seen: the teacher's unit embeddings of x0-hat [n, D].
            batch: the batch.
            rows: the places of these images in the batch, int64 [n].
        """

    def fits(self) -> None:
        """Raise InputError if examples, network and recipe do not fit together."""

    def kept(self) -> dict[str, Any]:
        """Return the facts about the training that sampling needs, JSON-able."""
        return {}

    def check_followed(self, config: dict[str, Any]) -> None:
        """Raise InputError if a student's options do not fit the config of its teacher's file."""

    def _load_followed(self) -> None:
        """Load the denoiser that a student follows, from which it also starts."""

        def stated(config: dict[str, Any]) -> dict[str, Any]:
            model = checked(self.Model, config["model"], "denoiser file: model.")
            process = checked(Process, config["process"], "denoiser file: process.")
            return {
                "system": config.get("system", "idiff_face"),
                "model": model.model_dump(mode="json", exclude={"cpd_rate"}),  # of its training
                "process": process.model_dump(mode="json"),
            }

        own = {"model": self.recipe.model, "process": self.options.process.model_dump()}
        wanted = stated({"system": self.system, **own})
        asked = self.recipe.weights.get("denoiser"), stated, wanted, self.build, self.check_followed
        self.followed = load_followed(*asked).to(self.device)
        self.module.load_state_dict(self.followed.state_dict())

    def _load_frozen(self) -> None:
        recipe = self.recipe
        needed = ("autoencoder", "teacher") if self.in_latents else ("teacher",)
        for name in needed:
            if name not in recipe.weights:
                raise InputError(f"recipe field weights.{name}: missing; {recipe.system} needs it")
        fresh = [name for name, part in recipe.weights.items() if part.location == RANDOM_INIT]
        self.random_init = tuple(fresh)
        self.autoencoder = None
        if "autoencoder" in fresh:
            made = make_autoencoder(VQConfig(size=recipe.image.size))
            self.autoencoder = made.eval().requires_grad_(False).to(self.device)
        elif "autoencoder" in recipe.weights:
            found = load_autoencoder(recipe.weights["autoencoder"], recipe.image.size)
            self.autoencoder = found.to(self.device)
        if "teacher" in fresh:
            backbone = Backbone(
                name=self.options.teacher_backbone, embedding_size=self.embedding_size
            )
            self.teacher, self.teacher_size = make_backbone(backbone, TEACHER_SIZE), TEACHER_SIZE
            self.teacher.eval().requires_grad_(False)
        else:
            known = load_recognizer(recipe.weights["teacher"].location)
            self.teacher, self.teacher_size = known.module, known.size
        self.teacher.to(self.device)
        if self.autoencoder is not None and self.autoencoder.config.size != recipe.image.size:
            raise InputError(
                f"recipe field image.size: {recipe.image.size}; the autoencoder accepts "
                f"{self.autoencoder.config.size}"
            )

    @property
    def embedding_size(self) -> int:
        """Return the dimensions of the embeddings that the network takes."""
        return self.config.context_size

    def source(self) -> ExampleSource:
        """Open the data that examples are computed from; the caller closes its feed."""
        recipe, data = self.recipe, self.recipe.data
        urls = tuple(data.urls())
        some = (data.identities, data.images_each)
        feed = Feed(urls, 1, CACHE_SEED, recipe.image.size, *some, resize=data.resize)
        held: Any = [[url, source_digest(Store(url))] for url in urls]  # rows follow their order
        size = [recipe.image.size] if data.resize else []
        digests = {
            "data": digest([dict(held) if len(urls) == 1 else held, *some, data.resize, *size]),
            "teacher": named(recipe, "teacher"),
        }
        space = "images"
        if self.autoencoder is not None:
            digests["autoencoder"], space = encoder_digest(self.autoencoder), "latents"
        return ExampleSource(
            feed,
            urls,
            tuple(dict.fromkeys((space, *self.kinds))),
            Frozen(self.autoencoder, self.teacher, self.teacher_size),
            digests,
            recipe.engine.precision == "bfloat16",
            self.attributes,
        )

    def _load_examples(self) -> None:
        recipe, source = self.recipe, self.source()
        sidecar = Store(recipe.precompute.sidecar) if recipe.precompute else None
        self.data: Examples = load_examples(source, self.place.cache, sidecar, self.place.say)
        source.feed.close()
        first = np.zeros(1, np.int64)
        shape = self.data.clean(first, first).shape[1:]
        if shape != self.shape:
            raise InputError(
                f"recipe field model.latent_channels, latent_size: {self.shape}; the "
                f"{'autoencoder' if self.autoencoder else 'dataset'} makes {shape}"
            )
        dimension = self.data.arrays["embeddings"].shape[2] if "embeddings" in self.kinds else None
        if dimension is not None and dimension != self.embedding_size:
            raise InputError(
                f"recipe field model.context_size: {self.embedding_size}; the teacher's "
                f"embeddings have {dimension}"
            )
        self.steps_per_epoch = len(self.data) // recipe.schedule.batch_size
        if not self.steps_per_epoch:
            raise InputError(
                f"recipe field schedule.batch_size: {recipe.schedule.batch_size}; there are "
                f"{len(self.data)} images"
            )

    @property
    def attributes(self) -> tuple[str, ...]:
        """Return the names of the attributes that the system reads from sidecars."""
        return ()

    def batches(self, start: int, stop: int) -> Iterator[DenoiserBatch]:
        """Yield this worker's part of each batch; the draws are made for the whole batch."""
        size, seed = self.recipe.schedule.batch_size, self.recipe.seed
        each = size // self.place.world
        part = slice(self.place.rank * each, (self.place.rank + 1) * each)
        order, epoch_held = np.empty(0, np.int64), -1
        for step in range(start, stop):
            key, turn = drawn_at(self.options.few, step)
            epoch, number = divmod(key, self.steps_per_epoch)
            if epoch != epoch_held:
                order = generator(seed64(seed, "order", epoch)).permutation(len(self.data))
                epoch_held = epoch
            rows = order[number * size : (number + 1) * size]
            batch = self._batch(rows, step, key, part)
            if self.segments is not None:
                batch = replace(batch, t=self.segments.start(batch.t, turn))
            yield batch

    def _batch(self, rows: np.ndarray, step: int, key: int, part: slice) -> DenoiserBatch:
        count, timesteps = len(rows), self.options.process.timesteps
        draws = generator(seed64(self.recipe.seed, "denoiser", key))
        flip = (draws.random(count) < 0.5).astype(np.int64)
        drawn = self.draw(draws, rows, flip)
        # Draw one time step from each of `count` equal parts of [0, T): uniform, less variance.
        share = (draws.permutation(count) + draws.random(count)) / count
        t = np.minimum((share * timesteps).astype(np.int64), timesteps - 1)
        noise = draws.standard_normal((count, *self.shape), np.float32)
        keep, empty = draw_masks(
            seed64(self.recipe.seed, "masks", key),
            count,
            self.mask_channels,
            self.cpd_rate,
            self.options.empty_context_prob,
        )
        looks = None
        identity, size = self.options.identity, self.recipe.image.size
        if self.segments is None and identity.weight and step >= identity.after * self.total_steps:
            looks = ()
            if identity.glances:
                grain = torch.from_numpy(draws.standard_normal((count, 3, size, size), np.float32))
                looks = tuple(self._put(d[part]) for d in (*draw_glances(draws, count), grain))
        clean = torch.from_numpy(self.data.clean(flip[part], rows[part]))
        return DenoiserBatch(
            rows[part],
            self.data.keys[rows[part]],
            self._put(clean).contiguous(memory_format=torch.channels_last),
            self._put(torch.from_numpy(noise)[part]),
            self._put(torch.from_numpy(t)[part]),
            (key * count + np.arange(count))[part],
            tuple(self._array(given[part]) for given in drawn.given),
            {name: self._array(values[part]) for name, values in drawn.wanted.items()},
            self._put(keep[part]),
            self._put(empty[part]),
            looks,
        )

    def _put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def _array(self, values: np.ndarray) -> Tensor:
        whole = values.astype(np.float32) if values.dtype == np.float16 else values
        return self._put(torch.from_numpy(np.ascontiguousarray(whole)))

    def loss(self, module: nn.Module, batch: DenoiserBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted error, plus the identity loss if it is on, and numbers to log."""
        given = self.taken(batch)
        if self.segments is None:
            noisy = self.noising.noised(batch.clean, batch.noise, batch.t)
            wanted = self.noising.target(batch.clean, batch.noise, batch.t)
        else:
            noisy, wanted = self.segments.followed(
                batch.noise, batch.t, self.followed, given, batch.empty, batch.places
            )
        predicted = module(noisy, batch.t, given, keep=batch.keep, empty=batch.empty).float()
        error = (predicted - wanted).square().mean(dim=(1, 2, 3))
        loss = (self.error_weight(batch.t) * error).mean()
        numbers = {"error": float(error.detach().mean())}
        if batch.looks is not None:
            identity, cosine = self._looked(noisy, predicted, batch, batch.looks)
            loss = loss + self.options.identity.weight * identity
            numbers["cosine"] = cosine
        return loss, numbers

    def taken(self, batch: DenoiserBatch) -> Given:
        """Return the network's `given`, a tensor or a tuple; frozen networks on images run here."""
        return batch.given[0] if len(batch.given) == 1 else batch.given

    def error_weight(self, t: Tensor) -> Tensor:
        """Return the weight of each sample's squared error for its time step, float [B]."""
        if self.segments is not None:
            return self.segments.weight(t)
        return self.noising.weight(t, self.options.min_snr_gamma)

    def _looked(
        self,
        noisy: Tensor,
        predicted: Tensor,
        batch: DenoiserBatch,
        looks: tuple[Tensor, ...],
    ) -> tuple[Tensor, float]:
        """Return the identity loss over the batch and the mean cosine to `wanted["context"]`.

        Samples with the empty context do not count.
        """
        options = self.options.identity
        near = (self.noising.gamma(batch.t) < options.max_t) & ~batch.empty
        rows = near.nonzero()[:, 0]
        if not len(rows):
            return predicted.new_zeros(()), 0.0
        made = self.noising.clean(noisy[rows], predicted[rows], batch.t[rows])
        made = made.clamp(-1.0, 1.0) if self.autoencoder is None else self.autoencoder.decode(made)
        if options.glances:
            made = glance(made, *(look[rows] for look in looks))
        seen = embed(self.teacher, self.teacher_size, made)
        loss = self.identity_loss(seen, batch, rows).sum() / len(batch.t)
        cosine = (seen.detach() * batch.wanted["context"][rows]).sum(dim=1)
        return loss, float(cosine.mean())

    @abstractmethod
    def shown(self, module: nn.Module, rows: np.ndarray) -> Given:
        """Return the network's `given` for unmirrored examples, for pictures of the training."""

    def samples(self, module: nn.Module) -> np.ndarray:
        """Return four rows of uint8 images: an image of the training, then seven samples of it."""
        people, each = 4, 7
        rows = np.arange(people)
        seeds = [seed64(0, "samples", n) for n in range(people * each)]
        low = self.recipe.engine.precision == "bfloat16"
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=low)
        with torch.inference_mode(), cast:
            predict = guided(module, self.shown(module, rows.repeat(each)), 1.0)
            if self.segments is not None:
                noise = draw_noise(seeds, self.shape, 0).to(self.device)
                made = self.segments.sample(predict, noise)
            else:
                sampler, process = Sampler(name="dpmsolver++", steps=16), self.options.process
                made = sample_latents(predict, seeds, self.shape, process, sampler, self.device)
            originals = self._array(self.data.clean(np.zeros(people, np.int64), rows))
            if self.autoencoder is not None:
                made, originals = self.autoencoder.decode(made), self.autoencoder.decode(originals)
        images = to_images(made).cpu().numpy()
        images = images.reshape(people, each, *images.shape[1:])
        return np.concatenate([to_images(originals).cpu().numpy()[:, None], images], axis=1)

    def save(self, module: nn.Module, path: Path, facts: dict[str, str]) -> None:
        """Write the denoiser with its sizes, its noise process and the facts of `kept`."""
        config: dict[str, Any] = {
            "system": self.system,
            "model": self.config.model_dump(mode="json"),
            "process": self.options.process.model_dump(mode="json"),
            "trained_with": {
                name: named(self.recipe, name)
                for name in ("autoencoder", "teacher", "denoiser")
                if name in self.recipe.weights
            },
            **self.kept(),
        }
        if self.options.few is not None:
            config["few"] = self.options.few.model_dump(mode="json")
        save_weights(path, "denoiser", module, json.loads(json.dumps(config)), facts)


def named(recipe: TrainRecipe, name: str) -> str:
    """Return the sha256 of a file of weights, or "random-init" for fresh weights."""
    weights = recipe.weights[name]
    return RANDOM_INIT if weights.location == RANDOM_INIT else checked_sha256(name, weights)
