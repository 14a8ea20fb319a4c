"""CemiFace (Sun et al., NeurIPS 2024): images with a requested similarity to an inquiry image.

Read this file beside the paper (docs/papers.md 3). Training needs no labels and no pairs, because
an image is target and inquiry at once. L_SimMat pulls the similarity of x0-hat to the inquiry
towards m at steps with much noise, and towards 1 at steps with little noise. In sampling, a
person's inquiry and a requested m give that person's images; only the noise varies among them.

The paper does not state how the inquiry enters. DEFAULT (docs/papers.md 3.1): as one token, which a
linear layer makes from the teacher's embedding and a linear projection of m. The following goes
beyond the paper and is off by default: several tokens, the inquiry in the residual blocks too, a
learned empty inquiry with guidance, other images of a person as inquiries with the m that they
have, velocity and min-SNR weights.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from factory.diffusion.adm import ADM, ADMConfig
from factory.diffusion.sampling import Given
from factory.recipe import Cosine, Fraction, InputError, Part, Positive, checked
from factory.seeding import generator
from factory.systems.base import Conditions, Position, Rendered
from factory.systems.sampling import DiffusionSystem, SamplingOptions
from factory.systems.training import (
    DenoiserBatch,
    DenoiserTraining,
    Drawn,
    IdentityLoss,
    TrainingOptions,
)

SHOWN = (-0.4, -0.2, 0.0, 0.2, 0.4, 0.7, 1.0)  # m of the pictures of a training


def similarity_loss(similarity: Tensor, m: Tensor, gamma: Tensor) -> Tensor:
    """Return L_SimMat = (1 - gamma) (1 - sim)^2 + gamma (m - sim)^2, float [n].

    For one gamma the optimum is sim = 1 - gamma (1 - m) (docs/papers.md 3.2).

    Args:
        similarity: cosine of x0-hat to the inquiry [n].
        m: the requested similarity [n].
        gamma: t/T [n].
    """
    return (1.0 - gamma) * (1.0 - similarity).square() + gamma * (m - similarity).square()


class Levels(Part):
    """The similarities that a denoiser is trained with: `low`, `low + step`, ... up to `high`."""

    low: Cosine = -1.0
    high: Cosine = 1.0
    step: Annotated[float, Field(gt=0.0, le=2.0)] = 0.04

    def values(self) -> np.ndarray:
        """Return the similarities in rising order, float64."""
        count = int(np.floor((self.high - self.low) / self.step + 1e-9)) + 1
        return np.round(self.low + self.step * np.arange(count), 9)


class MBand(Part):
    """A share of the images with m drawn from the levels inside a band."""

    m_band: tuple[Cosine, Cosine]
    weight: Annotated[float, Field(gt=0.0)] = 1.0


class CemiFaceConfig(Part):
    """The sizes of the denoiser and of its inquiry; defaults are the paper's where it has them."""

    unet: ADMConfig = ADMConfig()
    context_size: Positive = Field(default=512, description="Dimensions of an embedding.")
    context: Literal["unit", "raw"] = Field(
        default="unit",
        description="Embeddings of length one, or raw ones; sampling uses the mean raw length.",
    )
    similarity_channels: Positive = Field(default=512, description="Outputs of F1.")
    conditioning: Literal["attention", "both"] = Field(
        default="attention",
        description="Where inquiry and m enter: as keys of the attention, or with the time too.",
    )
    tokens: Positive = 1
    learn_empty_context: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of an image or latent."""
        return self.unet.shape


class InquiryDenoiser(nn.Module):
    """The ADM U-Net with the inquiry and m as outside keys and values of its attention.

    Only the time step enters the residual blocks, unless the configuration says "both".
    """

    def __init__(self, config: CemiFaceConfig) -> None:
        """Make F1, F2 and the U-Net."""
        super().__init__()
        self.config = config
        self.unet = ADM(config.unet)
        self.similarity = nn.Linear(1, config.similarity_channels)
        inputs = config.context_size + config.similarity_channels
        self.keys = nn.Linear(inputs, config.tokens * config.unet.key_channels)
        self.feature = None
        if config.conditioning == "both":
            self.feature = nn.Linear(inputs, 4 * config.unet.widths[0])
        shape = (config.tokens, config.unet.key_channels)
        self.empty = nn.Parameter(0.1 * torch.randn(shape)) if config.learn_empty_context else None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        given: tuple[Tensor, Tensor] | None,
        keep: Tensor | None = None,
        empty: Tensor | None = None,
    ) -> Tensor:
        """Predict noise or velocity, [B, C, H, W].

        Args:
            x: noisy images or latents [B, C, H, W].
            t: time steps [B] in [0, T).
            given: C_id, embeddings [B, D], and m [B, 1]; None for the empty inquiry everywhere.
            keep: not used, because an inquiry has no dropout.
            empty: bool [B], samples that get the empty inquiry, if the network learned one.
        """
        if given is None:
            assert self.empty is not None
            return self.unet(x, t, self.empty.expand(len(x), -1, -1))
        context, m = given
        attended = torch.cat([context, self.similarity(m)], dim=1)  # cat(C_id, C_sim)
        keys = self.keys(attended).unflatten(1, (self.config.tokens, -1))
        feature = None if self.feature is None else self.feature(attended)
        if empty is not None and self.empty is not None:
            keys = torch.where(empty[:, None, None], self.empty.to(keys.dtype), keys)
            feature = None if feature is None else feature * ~empty[:, None]
        return self.unet(x, t, keys, feature)


class CemiFaceSampling(SamplingOptions):
    """CemiFace's own fields of a generate recipe."""

    m: Cosine | tuple[Cosine, Cosine] | tuple[MBand, ...] = Field(
        default=0.0,
        description="One similarity, a band [low, high], or a list of {m_band, weight}.",
    )

    def bands(self) -> tuple[MBand, ...]:
        """Return m as a list of bands; one similarity is a band without width."""
        if isinstance(self.m, float | int):
            return (MBand(m_band=(self.m, self.m)),)
        if isinstance(self.m[0], MBand):
            return tuple(band for band in self.m if isinstance(band, MBand))
        low, high = (float(end) for end in self.m if not isinstance(end, MBand))
        return (MBand(m_band=(low, high)),)


class CemiFace(DiffusionSystem):
    """Sample faces at a requested similarity to their inquiry."""

    name = "cemiface"
    Options = CemiFaceSampling
    sources = ("gallery", "bank", "two_stage")
    unperturbed = "its m already says how far an image lies from its inquiry"
    one_sided = False

    def build(self, config: dict[str, Any]) -> nn.Module:
        """Make the denoiser, and read which similarities it was trained with."""
        self.model = checked(CemiFaceConfig, config["model"], "denoiser file: model.")
        levels = checked(Levels, config["levels"], "denoiser file: levels.")
        self.mixture = [
            (band.weight, _inside(band.m_band, levels)) for band in self.options.bands()
        ]
        self.length = float(config["length"])
        return InquiryDenoiser(self.model)

    def fits(self) -> None:
        """Refuse a teacher of another size, and an empty inquiry that was never learned."""
        self.suits(self.model.context_size, self.model.learn_empty_context)

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return unit embeddings of inquiries, float32 [n, D]; each depends on its index alone.

        `gallery` embeds a frontal picture of a studio person that no generator saw. `bank` embeds
        the first image of each of a dataset's identities. `two_stage` embeds an image that was
        sampled without an inquiry.
        """
        if self.recipe.identities.source == "two_stage":
            return self.embedded(self.unconditional(indices))
        return self.embedded(self.identity_images(indices))

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Draw the m of each image; it is also the target similarity of the screen."""
        m = np.array([self._m(place) for place in positions], np.float32)
        return Conditions(context=contexts, target=m)

    def _m(self, place: Position) -> float:
        draws = generator(place.seed(self.recipe.seed, "m"))
        weights = np.array([weight for weight, _ in self.mixture])
        number = np.searchsorted(np.cumsum(weights), draws.random() * weights.sum(), side="right")
        return float(draws.choice(self.mixture[number][1]))

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Return the images of one batch, uint8 [B, S, S, 3], with their m as truth."""
        seeds = [place.seed(self.recipe.seed) for place in positions]
        context, m = (
            torch.from_numpy(np.ascontiguousarray(part, np.float32)).to(self.device)
            for part in (conditions.context, conditions.target[:, None])
        )
        images = self.images((self.length * context, m), seeds)
        return Rendered(images, [{"m": round(float(one), 6)} for one in conditions.target])


def _inside(band: tuple[float, float], levels: Levels) -> np.ndarray:
    """Return the levels inside a band; a band without width is the nearest level."""
    values, (low, high) = levels.values(), band
    if low == high:
        nearest = values[np.abs(values - low).argmin()]
        low = high = nearest if abs(nearest - low) <= levels.step / 2 + 1e-9 else low
    found = values[(values >= low - 1e-9) & (values <= high + 1e-9)]
    if not len(found):
        raise InputError(
            f"recipe field options.m: [{band[0]}, {band[1]}] holds no similarity the denoiser was "
            f"trained with; accepted are {levels.low} to {levels.high} in steps of {levels.step}"
        )
    return found


class CemiFaceOptions(TrainingOptions):
    """CemiFace's own fields of a train recipe; the defaults are the paper's."""

    identity: IdentityLoss = IdentityLoss(weight=0.05, max_t=1.0, glances=False)
    levels: Levels = Levels()
    other_image_prob: Fraction = Field(
        default=0.0,
        description="Share of samples whose inquiry is another image of the person, with the m "
        "that the two have. It needs labels; at 0 none are read.",
    )


class CemiFaceTraining(DenoiserTraining):
    """Train on images alone: each image is its own inquiry, with a drawn similarity.

    With options.other_image_prob, a share of the inquiries are other images of the same person.
    Such a pair has its own m, which the image then fits, so nothing pulls two ways.
    """

    system = "cemiface"
    Model = CemiFaceConfig
    Options = CemiFaceOptions
    fresh = ("similarity.", "keys.", "feature.", "empty")

    def check(self) -> None:
        """Refuse an empty inquiry that is not learned; read norms if embeddings are raw."""
        self.check_empty()
        if self.config.context == "raw":
            self.kinds = ("embeddings", "norms")
        self.values = self.options.levels.values()

    def check_followed(self, config: dict[str, Any]) -> None:
        """Refuse levels that the teacher was not trained with."""
        own, teacher = (
            self.options.levels,
            checked(Levels, config["levels"], "denoiser file: levels."),
        )
        if own.low < teacher.low or own.high > teacher.high:
            raise InputError(
                f"recipe field options.levels: {own.low} to {own.high}; accepted is what the "
                f"denoiser that the student follows has learned, {teacher.low} to {teacher.high}"
            )

    def build(self) -> nn.Module:
        """Make the denoiser."""
        return InquiryDenoiser(self.config)

    def draw(self, draws: np.random.Generator, rows: np.ndarray, flip: np.ndarray) -> Drawn:
        """Take each image as its own inquiry, and draw m uniformly from the levels.

        An inquiry of another image has the cosine of the two embeddings as its m.
        """
        data, count = self.data, len(rows)
        m = draws.choice(self.values, count).astype(np.float32)
        context = data.embeddings[flip, rows].astype(np.float32)
        paired, inquiries = np.zeros(count, bool), rows
        if self.options.other_image_prob:
            paired = draws.random(count) < self.options.other_image_prob
            inquiries = np.where(paired, data.another(rows, draws.random(count)), rows)
            own, context = context, data.embeddings[flip, inquiries].astype(np.float32)
            m = np.where(paired, (own * context).sum(axis=1), m)
        wanted = {"context": context, "m": m, "paired": paired}
        return Drawn((self._inquiry(context, flip, inquiries), m[:, None]), wanted)

    def _inquiry(self, context: np.ndarray, flip: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if self.config.context == "unit":
            return context
        return context * self.data.norms[flip, rows].astype(np.float32)[:, None]

    def identity_loss(self, seen: Tensor, batch: DenoiserBatch, rows: Tensor) -> Tensor:
        """Return L_SimMat of each image, float [n]; a pair's is (m - sim)^2 at every t."""
        similarity = (seen * batch.wanted["context"][rows]).sum(dim=1)
        gamma = self.noising.gamma(batch.t[rows]).masked_fill(batch.wanted["paired"][rows], 1.0)
        return similarity_loss(similarity, batch.wanted["m"][rows], gamma)

    def shown(self, module: nn.Module, rows: np.ndarray) -> Given:
        """Return the examples' own inquiries with rising m."""
        flip = np.zeros_like(rows)
        context = self.data.embeddings[flip, rows].astype(np.float32)
        m = np.resize(np.array(SHOWN, np.float32), (len(rows), 1))
        return self._array(self._inquiry(context, flip, rows)), self._array(m)

    def kept(self) -> dict[str, Any]:
        """Return the similarities of the training, and the inquiries' mean length."""
        lengths = self.data.norms if self.config.context == "raw" else np.ones(1)
        length = float(np.mean(lengths, dtype=np.float64))
        return {"levels": self.options.levels.model_dump(), "length": length}


SYSTEM = CemiFace
TRAINING = CemiFaceTraining
