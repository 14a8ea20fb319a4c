"""Sampling of diffusion systems: loading, guidance, and images by position.

A system supplies its network and its conditions. This module holds what they share: noise process,
guidance, autoencoder, teacher and draws keyed by position.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from factory.cluster.hardware import gpu_facts
from factory.datasets.images import ImageBank
from factory.datasets.provenance import checked_sha256
from factory.datasets.store import Store
from factory.diffusion.autoencoder import to_images, to_pixels
from factory.diffusion.distillation import student
from factory.diffusion.examples import embed
from factory.diffusion.files import (
    check_foreign,
    load_autoencoder,
    load_denoiser,
    read_metadata,
)
from factory.diffusion.published import INSIDE
from factory.diffusion.sampling import (
    Draw,
    Given,
    Predict,
    draw_noise,
    guided,
    sample_latents,
    torch_noise,
)
from factory.diffusion.schedule import Process
from factory.plan import Shard
from factory.recipe import (
    AUTO,
    SCREENS,
    Cosine,
    Fraction,
    InputError,
    NamedDataset,
    Part,
    Positive,
    Sampler,
    checked,
)
from factory.recognition.recognizer import Recognizer
from factory.recognition.recognizers import load_recognizer
from factory.seeding import generator, seed64
from factory.studio.people import person
from factory.studio.render import render
from factory.studio.views import draw_view_kind
from factory.systems.base import Conditions, Position, System
from factory.systems.contexts import cosine_bounds, perturb


class Perturb(Part):
    """IDperturb (CVPR 2026): an image's context has the cosine s ~ U[lb_i, 1] to its identity's.

    The paper's lb_i = max(lb, max_j cos(angle_ij / 2)) keeps identities apart. It depends on all
    identities, so a dataset made with it cannot grow. Without it, lb_i = lb (docs/papers.md 5).
    """

    lb: Cosine = 0.6
    among: Positive | None = Field(
        default=None,
        description="Use the paper's bound among this many identities, which must be all; "
        "default: lb alone.",
    )


class SamplingOptions(Part):
    """The fields of a generate recipe's `options` that every diffusion system accepts."""

    guidance_interval: tuple[Fraction, Fraction] = Field(
        default=(0.0, 1.0), description="Guidance is on while t/T lies inside."
    )
    guidance_rescale: Fraction = Field(
        default=0.0, description="How far the guided prediction gets the conditional one's spread."
    )
    bank: NamedDataset | None = Field(
        default=None, description="For identities.source bank: first images are the identities."
    )
    perturb: Perturb | None = Field(
        default=None, description="Turn each image's context away from its identity's."
    )


class DiffusionSystem(System):
    """A system that samples a trained denoiser, in latents or in pixels.

    Subclasses build their network and keep its sizes as `model` (`build`), and check that the
    weights fit the recipe (`fits`). They make images with `images`.

    Attributes:
        model: the network's sizes, a part whose `shape` is that of what the network denoises.
        network: the denoiser, in evaluation mode.
        config: the config in its file: `model`, `process`, and facts that the training kept for
            sampling.
        process: its noise process.
        student: its steps, if it was distilled into a few.
        autoencoder: None where the denoiser works on pixels.
        recognizer: the one that embeds, `weights.teacher` or inside of the denoiser's file; None
            where nothing is to be embedded.
        bank: the images of identities.source bank; None for another source.
    """

    model: Any
    Options = SamplingOptions
    unperturbed: ClassVar[str] = ""  # why the system refuses options.perturb, if it does
    weights = ("denoiser", "teacher")
    in_latents: ClassVar[bool | None] = None  # None: the denoiser's file decides
    unembedded: ClassVar[tuple[str, ...]] = ()  # values of identities.source that embed nothing
    learns_variance: ClassVar[bool] = False  # whether its networks may predict a variance
    torch_seed: ClassVar[int | None] = None  # of torch's generator in the published script

    def needed(self) -> tuple[str, ...]:
        """Return the names that weights must have: a teacher only where something is embedded."""
        recipe = self.recipe
        without = recipe.teacher is not None or recipe.identities.source in self.unembedded
        return tuple(name for name in self.weights if name != "teacher" or not without)

    def check(self) -> None:
        """Refuse a recipe without a sampler, or with what its sampler or the system has not."""
        recipe = self.recipe
        if recipe.sampler is None:
            raise InputError(f"recipe field sampler: missing; {self.name} needs one")
        if recipe.sampler.eta and recipe.sampler.name != "ddim":
            raise InputError(
                f"recipe field sampler.eta: {recipe.sampler.eta}; {recipe.sampler.name} accepts 0"
            )
        if recipe.sampler.noise == "torch" and self.torch_seed is None:
            raise InputError(
                f"recipe field sampler.noise: torch; {self.name} accepts position: no order of its "
                "authors' is known"
            )
        if recipe.sampler.variance == "learned" and not self.learns_variance:
            raise InputError(f"recipe field sampler.variance: learned; {self.name} accepts beta")
        rejecting = [name for name in SCREENS if getattr(recipe.screens, name) is not None]
        if rejecting and recipe.teacher is None:
            raise InputError(
                f"recipe field weights.teacher: missing; screens.{rejecting[0]} needs it"
            )
        source, bank = recipe.identities.source, self.options.bank
        if (bank is not None) != (source == "bank"):
            raise InputError(
                f"recipe field options.bank: {'given' if bank else 'missing'}, and "
                f"identities.source is {source}; the source bank needs one, and no other does"
            )
        self.bounds = np.zeros(0)
        self._check_perturb()

    def _check_perturb(self) -> None:
        asked, count = self.options.perturb, self.recipe.identities.count
        if asked is None:
            return
        if self.unperturbed:
            raise InputError(
                f"recipe field options.perturb: {self.name} accepts none: {self.unperturbed}"
            )
        if asked.among not in (None, count):
            raise InputError(
                f"recipe field options.perturb.among: {asked.among}; it must be identities.count, "
                f"{count}, or be left out, since bounds among other identities are other bounds"
            )

    def open(self) -> None:
        """Open the bank of identities, where the recipe names one, and look at others' files."""
        recipe, named = self.recipe, self.options.bank
        check_foreign(recipe.weights["denoiser"], "denoiser", self._built)
        if "autoencoder" in recipe.weights:
            check_foreign(recipe.weights["autoencoder"], "autoencoder")
        self.bank: ImageBank | None = None
        if named is None:
            return
        self.bank = ImageBank(named, self.bank_size, "recipe field options.bank", firsts=True)
        if len(self.bank) < recipe.identities.count:
            raise InputError(
                f"recipe field identities.count: {recipe.identities.count}; the bank "
                f"{self.bank.url} has {len(self.bank)}"
            )

    def origins(self) -> tuple[Store, ...]:
        """Return the bank of identities, if there is one."""
        return () if self.bank is None else (self.bank.store,)

    @property
    def bank_size(self) -> int:
        """Return height and width of the bank's images; those that are made unless overridden."""
        return self.recipe.image.size

    @abstractmethod
    def build(self, config: dict[str, Any]) -> nn.Module:
        """Make the network that a denoiser file's `config` describes, with fresh weights."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the tensors that the network denoises."""
        return self.model.shape

    def fits(self) -> None:
        """Raise InputError if network, teacher and recipe do not fit together."""

    def suits(self, dimension: int, learned_empty: bool) -> None:
        """Refuse a teacher of another size, and an empty context that was never learned.

        Args:
            dimension: size of the embeddings that the denoiser takes.
            learned_empty: whether the denoiser learned an empty context, which guidance and
                `two_stage` need.
        """
        if self.recognizer is not None and self.recognizer.dimension != dimension:
            raise InputError(
                f"recipe field weights.teacher.location: embeddings of "
                f"{self.recognizer.dimension}; "
                f"the denoiser accepts {dimension}"
            )
        guides = self.sampler.guidance_scale > 1.0 or self.recipe.identities.source == "two_stage"
        if guides and not learned_empty:
            raise InputError(
                "recipe field weights.denoiser.location: the denoiser has no learned empty context;"
                " accepted are sampler.guidance_scale 1 and an identities.source but two_stage"
            )

    def load(self) -> None:
        """Load denoiser, autoencoder and teacher, and check that they fit together."""
        self.open()
        recipe = self.recipe
        assert recipe.sampler is not None
        assert recipe.sampler.dtype != AUTO, "what auto means is settled before sampling"
        self.sampler: Sampler = recipe.sampler
        self.device = torch.device("cuda" if recipe.workers.num_gpus else "cpu")
        for name in ("denoiser", "autoencoder"):
            if name not in recipe.weights:
                continue
            facts = read_metadata(recipe.weights[name], name, name)
            if facts.get("random_init"):
                raise InputError(
                    f"recipe field weights.{name}.location: {recipe.weights[name].location} was "
                    f"trained with random-init {facts['random_init']}: it draws no faces"
                )
        network, self.config = load_denoiser(recipe.weights["denoiser"], self._built)
        self.student = student(self.config, self.sampler)
        self.network = network.to(self.device)
        self.process = checked(Process, self.config["process"], "denoiser file: process.")
        self.autoencoder = None
        if self._in_latents():
            found = load_autoencoder(recipe.weights["autoencoder"], recipe.image.size)
            self.autoencoder = found.to(self.device)
        self.recognizer: Recognizer | None = None
        if recipe.teacher is not None:
            checked_sha256("teacher", recipe.teacher)
            self.recognizer = load_recognizer(recipe.teacher.location, device=self.device)
        made = self.autoencoder.config.size if self.autoencoder else self.shape[1]
        if made != recipe.image.size:
            raise InputError(
                f"recipe field image.size: {recipe.image.size}; the "
                f"{'autoencoder' if self.autoencoder else 'denoiser'} makes {made}"
            )
        self.fits()

    def own_teacher(self) -> None:
        """Refuse a teacher that the denoiser was not trained with, whose features it reads."""
        if "teacher" not in self.recipe.weights:
            return
        found = checked_sha256("teacher", self.recipe.weights["teacher"])
        wanted, inside = self.config["trained_with"]["teacher"], ""
        if wanted == INSIDE:
            wanted = checked_sha256("denoiser", self.recipe.weights["denoiser"])
            inside = ", inside of its own file; weights.teacher is to be left out"
        if found != wanted:
            raise InputError(
                f"recipe field weights.teacher: sha256 {found}; the denoiser reads features of the "
                f"one it was trained with, {wanted}{inside}"
            )

    @property
    def teacher(self) -> Recognizer:
        """Return the recognizer that embeds, of a recipe that has one."""
        assert self.recognizer is not None, "weights are checked for it"
        return self.recognizer

    def enter(self, shard: Shard) -> None:
        """Begin a shard with a generator of its own, where noise is torch's."""
        if self.torch_seed is not None:
            rank = shard.identity_start // self.recipe.shard.identities
            self.stream = torch.Generator().manual_seed(self.torch_seed * (1 + rank))

    def noise(self, positions: Sequence[Position]) -> Draw | None:
        """Return what draws the noise of a batch in the authors' order; None: by position."""
        if self.sampler.noise == "position":
            return None
        return torch_noise(self.stream, len(positions), self.shape)

    def gpu(self) -> dict[str, str]:
        """Return the GPU's name and CUDA's version if the networks are on a GPU."""
        return gpu_facts() if self.device.type == "cuda" else {}

    def _built(self, config: dict[str, Any]) -> nn.Module:
        made_for = config.get("system", "idiff_face")
        if made_for != self.name:
            raise InputError(
                f"recipe field weights.denoiser.location: a denoiser of {made_for}; {self.name} "
                "accepts its own"
            )
        return self.build(config)

    def _in_latents(self) -> bool:
        latent = "autoencoder" in self.config.get("trained_with", {"autoencoder": ""})
        given = "autoencoder" in self.recipe.weights
        if latent != given:
            raise InputError(
                f"recipe field weights.autoencoder: {'given' if given else 'missing'}; the "
                f"denoiser was trained on {'latents and needs' if latent else 'pixels and takes'} "
                f"{'one' if latent else 'none'}"
            )
        return latent

    def seeds(self, stage: str, indices: Sequence[int]) -> list[int]:
        """Return the seed of each index for a stage."""
        return [seed64(self.recipe.seed, stage, index) for index in indices]

    def gallery(self, indices: Sequence[int]) -> np.ndarray:
        """Return frontal pictures of studio people that no generator saw, uint8 [n, S, S, 3]."""
        size = self.recipe.image.size
        seeds = self.seeds("context", indices)
        return np.stack(
            [
                render(person("gallery", index), draw_view_kind(seed, "frontal"), size)
                for index, seed in zip(indices, seeds, strict=True)
            ]
        )

    def identity_images(self, indices: Sequence[int]) -> np.ndarray:
        """Return the bank's images of identities, else gallery pictures, uint8 [n, S, S, 3].

        Candidates are drawn in whole blocks, so that indices may exceed the bank. Such an index
        repeats one of the first images and never becomes an identity.
        """
        if self.bank is None:
            return self.gallery(indices)
        return self.bank.images([index % len(self.bank) for index in indices])

    def unconditional(self, indices: Sequence[int], steps: int | None = None) -> np.ndarray:
        """Return images sampled with the empty context, uint8 [n, S, S, 3].

        Args:
            indices: one index for each image, which alone decides it.
            steps: sampler steps; default: the recipe's.
        """
        steps = steps or self.sampler.steps
        sampler = self.sampler.model_copy(update={"steps": steps})
        seeds, size = self.seeds("context", indices), self.sampler.batch_size
        return np.concatenate(
            [self.images(None, full, sampler)[:count] for full, count in filled(seeds, size)]
        )

    def meet(self, contexts: np.ndarray) -> None:
        """Compute the lowest cosine that each identity's perturbed contexts may have."""
        asked = self.options.perturb
        if asked is not None:
            clamped = asked.among is not None
            self.bounds = (
                cosine_bounds(contexts, asked.lb) if clamped else np.full(len(contexts), asked.lb)
            )

    def remarks(self, contexts: np.ndarray) -> list[str]:
        """Return a line on the bounds of perturbation that are in effect."""
        self.meet(contexts)
        if not len(self.bounds):
            return []
        low, middle, high = np.quantile(self.bounds, [0.0, 0.5, 1.0])
        asked = self.options.perturb.lb
        return [
            f"perturbation: cosine to the identity from U[lb, 1]; lb {asked} asked for, in effect "
            f"{low:.3f} to {high:.3f}, median {middle:.3f}, raised for "
            f"{int((self.bounds > asked).sum())} of {len(contexts)} identities"
        ]

    def perturbed(
        self, contexts: np.ndarray, positions: Sequence[Position]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return each image's context and its cosine to the identity's, float32 [B, D] and [B]."""
        seed = self.recipe.seed
        low = self.bounds[[place.identity for place in positions]]
        share = np.array([generator(place.seed(seed, "v")).random() for place in positions])
        cosines = low + (1.0 - low) * share
        drawn = perturb(contexts, cosines, [place.seed(seed, "context") for place in positions])
        return drawn.astype(np.float32), cosines.astype(np.float32)

    def turned(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Return contexts as they are, target cosine 1, or each turned as options.perturb says.

        The turned ones are `extras["drawn"]`, and the target is their cosine to the identity's.
        """
        if self.options.perturb is None:
            return Conditions(contexts, np.ones(len(positions), np.float32))
        drawn, cosines = self.perturbed(contexts, positions)
        return Conditions(contexts, cosines, {"drawn": drawn})

    def used(self, conditions: Conditions) -> tuple[Tensor, list[dict[str, Any]]]:
        """Return the contexts of `turned` conditions on the device, and facts of each image."""
        drawn = conditions.extras.get("drawn")
        used = np.ascontiguousarray(conditions.context if drawn is None else drawn, np.float32)
        told = [{} if drawn is None else {"v": round(float(v), 6)} for v in conditions.target]
        return torch.from_numpy(used).to(self.device), told

    @torch.inference_mode()
    def embedded(self, images: np.ndarray) -> np.ndarray:
        """Return the teacher's unit embeddings, float32 [n, D], of uint8 [n, S, S, 3]."""
        found = []
        for rows, count in filled(range(len(images)), self.sampler.batch_size):
            pixels = to_pixels(torch.from_numpy(images[list(rows)])).to(self.device)
            made = embed(self.teacher.module, self.teacher.size, pixels)
            found.append(made.cpu().numpy()[:count])
        return np.concatenate(found)

    def denoise(
        self, x: Tensor, t: Tensor, given: Given, keep: Tensor | None, empty: Tensor | None
    ) -> Tensor:
        """Call the network once; a system that encodes its conditions beforehand overrides this."""
        return self.network(x, t, given, keep=keep, empty=empty)

    def predictor(self, given: Given, sampler: Sampler) -> Predict:
        """Return the function that predicts for a batch, with the recipe's guidance."""
        return guided(
            self.denoise,
            given,
            sampler.guidance_scale,
            self.options.guidance_interval,
            self.options.guidance_rescale,
            self.process.timesteps,
        )

    @torch.no_grad()
    def images(
        self,
        given: Given,
        seeds: Sequence[int],
        sampler: Sampler | None = None,
        draw: Draw | None = None,
    ) -> np.ndarray:
        """Sample images, uint8 [B, S, S, 3].

        Args:
            given: what the network is conditioned on; None samples the empty context.
            seeds: one 64-bit seed an image.
            sampler: default the recipe's.
            draw: gives their noise; default by the seeds.
        """
        sampler = sampler or self.sampler
        low = self.sampler.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            predict = self.predictor(given, sampler)
            if self.student is not None:  # it has learned its own steps, and no others
                draw = draw or (lambda step: draw_noise(seeds, self.shape, step))
                made = self.student.sample(predict, draw(0).to(self.device))
            else:
                pixels = self.autoencoder is None
                made = sample_latents(
                    predict, seeds, self.shape, self.process, sampler, self.device, pixels, draw
                )
            if self.autoencoder is not None:
                made = self.autoencoder.decode(made)
            return to_images(made).cpu().numpy()


def filled(items: Sequence[int], size: int) -> Iterator[tuple[list[int], int]]:
    """Yield (batch, number of real items); the last batch is filled up with repeated items.

    All batches have one size, so that the last bits of an item do not depend on the number of
    items.
    """
    for start in range(0, len(items), size):
        part = list(items[start : start + size])
        yield part + [part[-1]] * (size - len(part)), len(part)
