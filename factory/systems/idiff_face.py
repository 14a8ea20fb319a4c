"""IDiff-Face (Boutros et al., ICCV 2023): an identity embedding steers a latent diffusion model.

Read this file beside the paper (docs/papers.md 2). In training, the context of an image is its own
embedding under the teacher; contextual partial dropout keeps the denoiser from reading more than
the identity out of it. In sampling, a synthetic context gives one person, and fresh noise gives
that person's images. The context is drawn uniformly on the sphere or in two stages; it does not
vary within an identity.

There are two differences from the paper. A mirrored target has the mirrored image's embedding. And
`two_stage` samples its first images with the empty context of this network, whereas the paper
trains a network without contexts for them. Published weights are taken as they are
(`idiff_face:FILE`), and contexts of a file in their order.

The following goes beyond the paper and is off by default: a learned empty context with guidance,
contexts from another image of the same person, min-SNR weights, and an identity loss through
decoder and teacher.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from factory.diffusion.autoencoder import KL, VQ
from factory.diffusion.sampling import Given
from factory.diffusion.unet import UNet, UNetConfig
from factory.recipe import Cosine, Fraction, InputError, checked
from factory.systems.base import Conditions, Position, Rendered
from factory.systems.context_file import ContextsFile, check_source, read_contexts
from factory.systems.contexts import perturb, uniform
from factory.systems.sampling import DiffusionSystem, SamplingOptions
from factory.systems.training import DenoiserBatch, DenoiserTraining, Drawn, TrainingOptions


class IDiffFaceSampling(SamplingOptions):
    """IDiff-Face's own fields of a generate recipe; CPD belongs to the weights."""

    contexts: ContextsFile | None = Field(
        default=None, description="For identities.source file: identity i is its i-th vector."
    )
    first_stage_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Sampler steps of two_stage's first image; default: sampler.steps"
    )


class IDiffFace(DiffusionSystem):
    """Sample faces of synthetic identities from a trained denoiser."""

    name = "idiff_face"
    Options = IDiffFaceSampling
    sources = ("uniform", "two_stage", "gallery", "bank", "file", "noise")
    weights = ("denoiser", "autoencoder", "teacher")
    unembedded = ("uniform", "file", "noise")
    torch_seed = 42

    def check(self) -> None:
        """Refuse what contradicts the source of identities."""
        super().check()
        recipe, source = self.recipe, self.recipe.identities.source
        self.banked = source != "noise"
        check_source(self.options.contexts, source)
        if source == "noise" and (self.options.perturb or recipe.screens.identity_drift):
            raise InputError(
                "recipe field identities.source: noise, which draws faces of nobody; leave out "
                "options.perturb and screens.identity_drift"
            )
        assert recipe.sampler is not None
        if source == "two_stage" and recipe.sampler.noise == "torch":
            raise InputError(
                "recipe field sampler.noise: torch; identities.source two_stage accepts position"
            )

    def open(self) -> None:
        """Open the bank of identities, or the file of contexts, where the recipe names one."""
        super().open()
        self.contexts = read_contexts(self.options.contexts, self.recipe.identities.count)

    def build(self, config: dict[str, Any]) -> nn.Module:
        """Make the denoiser."""
        self.model = checked(UNetConfig, config["model"], "denoiser file: model.")
        return UNet(self.model)

    def fits(self) -> None:
        """Refuse teacher, contexts and images of other sizes, and what was never learned."""
        model, recipe, source = self.model, self.recipe, self.recipe.identities.source
        location = recipe.weights["denoiser"].location
        if (model.conditioning == "none") != (source == "noise"):
            has = "no contexts" if model.conditioning == "none" else "contexts"
            raise InputError(
                f"recipe field identities.source: {source}; {location} was trained with {has}, "
                "and noise goes with none"
            )
        if source == "file" and self.contexts.shape[1] != model.context_size:
            raise InputError(
                f"recipe field options.contexts.url: vectors of {self.contexts.shape[1]}; the "
                f"denoiser accepts {model.context_size}"
            )
        if isinstance(self.autoencoder, VQ | KL):
            made = model.latent_size * 2 ** (len(self.autoencoder.config.widths) - 1)
            if made != recipe.image.size:
                raise InputError(
                    f"recipe field image.size: {recipe.image.size}; latents of {model.latent_size} "
                    f"make images of {made}"
                )
        if source != "noise":
            self.suits(model.context_size, model.learn_empty_context)

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return unit contexts, float32 [n, D]; each depends on its index alone.

        `uniform` draws on the sphere, `two_stage` embeds an image sampled without an identity,
        `gallery` embeds a frontal picture of a studio person no generator has seen, `bank` the
        first image of each of a dataset's identities, `file` takes those of a file in their order.
        `noise` has none, [n, 0].
        """
        source = self.recipe.identities.source
        if source == "noise":
            return np.zeros((len(indices), 0), np.float32)
        if source == "file":
            return self.contexts[[index % len(self.contexts) for index in indices]]
        if source == "uniform":
            return uniform(self.recipe.seed, indices, self.model.context_size)
        if source == "two_stage":
            return self.embedded(self.unconditional(indices, self.options.first_stage_steps))
        return self.embedded(self.identity_images(indices))

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Return the contexts unchanged with target cosine 1; only the noise varies.

        With options.perturb, each image has a context of its own. Its cosine to the identity's
        context is the target.
        """
        return self.turned(contexts, positions)

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Return the images of one batch, uint8 [B, S, S, 3]."""
        seeds = [position.seed(self.recipe.seed) for position in positions]
        used, truth = self.used(conditions)
        images = self.images(used if self.banked else None, seeds, draw=self.noise(positions))
        return Rendered(images, truth)


class IDiffFaceOptions(TrainingOptions):
    """IDiff-Face's own fields of a train recipe; the defaults are the paper's."""

    other_image_prob: Fraction = Field(
        default=0.0, description="Share of samples whose context is another image of the person."
    )
    lb: Cosine = Field(
        default=1.0,
        description="A student's contexts are turned to cosines from U[lb, 1], as options.perturb "
        "turns those of sampling.",
    )


class IDiffFaceTraining(DenoiserTraining):
    """Train the denoiser on an image's own embedding, with partial dropout."""

    system = "idiff_face"
    Model = UNetConfig
    Options = IDiffFaceOptions
    in_latents = True

    def check(self) -> None:
        """Refuse to draw an empty context if the model learns none."""
        self.check_empty()
        if self.options.lb < 1.0 and self.options.few is None:
            raise InputError(
                f"recipe field options.lb: {self.options.lb:g}; without options.few accepted is 1: "
                "an image goes with its own context"
            )
        self.mask_channels, self.cpd_rate = self.config.context_channels, self.config.cpd_rate

    def build(self) -> nn.Module:
        """Make the denoiser."""
        return UNet(self.config)

    def draw(self, draws: np.random.Generator, rows: np.ndarray, flip: np.ndarray) -> Drawn:
        """Draw each context: the image's own embedding, or that of another image of the person."""
        data, count = self.data, len(rows)
        other = draws.random(count) < self.options.other_image_prob
        peer = data.another(rows, draws.random(count))
        context = data.embeddings[flip, np.where(other, peer, rows)].astype(np.float32)
        if self.options.lb < 1.0:
            cosines = draws.uniform(self.options.lb, 1.0, count)
            seeds = draws.integers(2**63, size=count).tolist()
            context = perturb(context, cosines, seeds).astype(np.float32)
        return Drawn((context,), {"context": context})

    def identity_loss(self, seen: Tensor, batch: DenoiserBatch, rows: Tensor) -> Tensor:
        """Return sqrt(alpha-bar) (1 - cos), so that steps with less noise count more.

        The paper has no such loss. At desk scale it closes most of the distance between context and
        image.
        """
        cosine = (seen * batch.wanted["context"][rows]).sum(dim=1)
        return self.noising.signal(batch.t[rows])[:, 0, 0, 0] * (1.0 - cosine)

    def shown(self, module: nn.Module, rows: np.ndarray) -> Given:
        """Return the examples' own contexts."""
        return self._array(self.data.embeddings[np.zeros_like(rows), rows])


SYSTEM = IDiffFace
TRAINING = IDiffFaceTraining
