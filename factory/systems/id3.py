"""ID3 (Xu et al., NeurIPS 2024): spread anchors, attributes, and a score adjusted to the identity.

Read this file beside the paper and docs/papers.md 4. In training, the denoiser sees an image's
embedding y and its attributes s, and the ID-preserving loss rewards <y, phi(x0-hat)>. In sampling,
the anchors of the identities lie as far apart as possible. An image's context has the cosine
v ~ U[lb, ub] to its identity's anchor. Its attributes are drawn from their histograms in the
training. Every step follows the score that is adjusted by the gradient of <y, phi(x0-hat)>.

RECONSTRUCTED, because the paper's text was not at hand (docs/papers.md 4.2): p(y | x_t) is von
Mises-Fisher around phi(x0-hat), so that both inner products have the weight w_t; attributes are
degrees / 90 and years / 100; the network is IDiff-Face's, with an MLP in place of its linear layer;
phi sees x0-hat as the autoencoder decodes it, not clipped.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from factory.datasets.provenance import checked_sha256
from factory.diffusion.examples import embed
from factory.diffusion.files import RANDOM_INIT, read_metadata
from factory.diffusion.sampling import Given, Predict
from factory.diffusion.schedule import Noising
from factory.diffusion.unet import UNet, UNetConfig
from factory.recipe import Cosine, Fraction, InputError, Part, Positive, Sampler, checked
from factory.recognition.attributes import STUDIO, Attribute, load_predictor
from factory.seeding import generator, seed64
from factory.systems.base import Conditions, Position, Rendered
from factory.systems.contexts import anchors, perturb, uniform
from factory.systems.idiff_face import IDiffFaceOptions, IDiffFaceTraining
from factory.systems.sampling import DiffusionSystem, SamplingOptions
from factory.systems.training import DenoiserBatch, Drawn, IdentityLoss

BINS = 24
DIVISORS = {"degrees": 90.0, "years": 100.0}  # by the first word of an attribute's unit
SMALL = 1e-12
READ = 256  # images in one call of a predictor


class AttributePredictor(Protocol):
    """A network that reads attributes from images whose sidecars do not state them."""

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """Return the attributes that it reads, by name."""
        ...

    @property
    def sha256(self) -> str:
        """Return the sha256 of its file."""
        ...

    def predict(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return each attribute of uint8 [N, S, S, 3] RGB images, float32 [N]."""
        ...


def likelihood_weight(share: Tensor) -> Tensor:
    """Return w_t = lambda_t kappa = 0.5 (1 - 1 / (1 + exp(-t/T))) for shares t/T.

    It falls from 0.25 at t = 0 to 0.134 at t = T (docs/papers.md 4.1).
    """
    return 0.5 * (1.0 - torch.sigmoid(share))


class AdjustedScore(Part):
    """The adjustment of the score by the gradient of <y, phi(x0-hat)>."""

    gradient: Literal["full", "cheap", "off"] = Field(
        default="full",
        description="full: through the denoiser; cheap: through x0-hat alone; off: none.",
    )
    strength: Annotated[float, Field(ge=0.0)] = Field(
        default=1.0, description="g, a factor on w_t: 1 is the paper's score."
    )
    interval: tuple[Fraction, Fraction] = Field(
        default=(0.0, 1.0), description="The adjustment is on while t/T lies inside."
    )


def adjusted(
    predict: Predict,
    noising: Noising,
    look: Callable[[Tensor], Tensor],
    wanted: Tensor,
    options: AdjustedScore,
) -> Predict:
    """Return a predictor of the adjusted score: eps~ = eps - sqrt(1 - alpha-bar) g w_t grad.

    grad is the gradient of <y, phi(x0-hat(x_t))> with respect to x_t (docs/papers.md 4.2). `full`
    differentiates the denoiser too. `cheap` takes the predicted noise as a constant, so that x0-hat
    is linear in x_t. Its gradient grows as 1 / sqrt(alpha-bar), so the correction is cut to the
    length of eps.

    Args:
        predict: (x_t [B, C, H, W], t [B]) -> noise or velocity, guided or not.
        noising: closed forms of the process; velocity changes by the noise's change / signal.
        look: x0-hat [B, C, H, W] -> unit embeddings [B, D], differentiable.
        wanted: y, unit embeddings [B, D].
        options: g, the variant, and the interval.
    """
    low, high = options.interval

    def adjust(x: Tensor, t: Tensor) -> Tensor:
        share = noising.gamma(t)
        if options.gradient == "off" or not low <= float(share[0]) <= high:
            return predict(x, t)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            if options.gradient == "full":
                predicted = predict(x, t).float()
                clean = noising.clean(x, predicted, t)
            else:
                with torch.no_grad():
                    predicted = predict(x, t).float()
                    eps = noising.noise(x, predicted, t)
                clean = (x - noising.sigma(t) * eps) / noising.signal(t)
            likeness = likelihood_weight(share) * (look(clean) * wanted).sum(dim=1)
            (gradient,) = torch.autograd.grad(likeness.sum(), x)
        correction = noising.sigma(t) * options.strength * gradient.float()
        predicted = predicted.detach()
        if options.gradient == "cheap":
            eps = noising.noise(x.detach(), predicted, t)
            limit = _length(eps) / _length(correction).clamp_min(SMALL)
            correction = correction * limit.clamp_max(1.0)
        return noising.moved(predicted, -correction, t)

    return adjust


def _length(maps: Tensor) -> Tensor:
    return maps.flatten(1).norm(dim=1)[:, None, None, None]


class Histogram(Part):
    """The histogram of an attribute over the training images, in the attribute's unit."""

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    divisor: float = Field(description="The denoiser takes the attribute divided by this.")

    def draw(self, seed: int, spread: float) -> float:
        """Draw a value, multiply its distance from the mean by `spread`, clip it to the edges."""
        draws = generator(seed)
        counts, edges = np.array(self.counts, np.float64), np.array(self.edges)
        number = np.searchsorted(np.cumsum(counts), draws.random() * counts.sum(), side="right")
        value = edges[number] + draws.random() * (edges[number + 1] - edges[number])
        mean = ((edges[1:] + edges[:-1]) / 2 * counts).sum() / counts.sum()
        return float(np.clip(mean + spread * (value - mean), edges[0], edges[-1]))


class AttributeDraw(Part):
    """How an attribute of an image is drawn; by default from the training's histogram."""

    value: float | None = Field(default=None, description="A fixed value, in the attribute's unit.")
    spread: Annotated[float, Field(ge=0.0)] = Field(
        default=1.0, description="Factor on the distance from the training's mean."
    )
    per: Literal["image", "identity"] = "image"


class ID3Sampling(SamplingOptions):
    """ID3's own fields of a generate recipe."""

    anchors: Positive | None = Field(
        default=None,
        description="How many anchors are spread together; the dataset may grow up to this many.",
    )
    bounds: tuple[Cosine, Cosine] = Field(
        default=(0.7, 0.9), description="lb, ub: bounds on the cosine of a context to its anchor."
    )
    score: AdjustedScore = AdjustedScore()
    attributes: dict[str, AttributeDraw] = Field(
        default={}, description="By name; the others are drawn from the training's histograms."
    )


class ID3(DiffusionSystem):
    """Sample faces around well-spread anchors."""

    name = "id3"
    Options = ID3Sampling
    sources = ("anchors", "uniform", "gallery", "bank")
    unperturbed = "options.bounds says how far its contexts lie from their anchors"
    weights = ("denoiser", "autoencoder", "teacher")
    one_sided = False

    def check(self) -> None:
        """Refuse bounds in the wrong order, and more identities than anchors."""
        super().check()
        lower, upper = self.options.bounds
        if lower > upper:
            raise InputError(
                f"recipe field options.bounds: [{lower}, {upper}]; accepted is the lower one first"
            )
        wanted, spread = self.recipe.identities, self.options.anchors
        if wanted.source != "anchors":
            return
        if spread is None or spread < wanted.count:
            raise InputError(
                f"recipe field options.anchors: {spread}; it must be identities.count, "
                f"{wanted.count}, or more: as many as the dataset may ever grow to, since anchors "
                "are spread together and another number makes others"
            )
        if wanted.max_cosine != 1.0:
            raise InputError(
                f"recipe field identities.max_cosine: {wanted.max_cosine}; source anchors accepts "
                "1: they already lie as far apart as they can"
            )

    def build(self, config: dict[str, Any]) -> nn.Module:
        """Make the denoiser, and read which attributes it takes."""
        self.model = checked(UNetConfig, config["model"], "denoiser file: model.")
        held = [
            checked(Histogram, raw, "denoiser file: attributes.") for raw in config["attributes"]
        ]
        self.histograms = {one.name: one for one in held}
        return UNet(self.model)

    @property
    def dimension(self) -> int:
        """Return the dimensions of y."""
        return self.model.context_size - len(self.histograms)

    def fits(self) -> None:
        """Refuse another teacher's size, unknown attributes, and what was never learned."""
        self.suits(self.dimension, self.model.learn_empty_context)
        for name in self.options.attributes:
            if name not in self.histograms:
                raise InputError(
                    f"recipe field options.attributes: {name}; the denoiser accepts: "
                    f"{', '.join(self.histograms)}"
                )
        if self.options.score.gradient == "off":
            return
        if self.student is not None:
            raise InputError(
                f"recipe field options.score.gradient: {self.options.score.gradient}; the denoiser "
                "is a student of a few steps, which accepts off: it predicts no score to adjust"
            )
        if self.process.zero_terminal_snr and self.options.score.interval[1] >= 1.0:
            raise InputError(
                "recipe field options.score.interval: reaches 1, where this denoiser's x_t is pure "
                "noise and has no x0-hat; accepted is an end below 1"
            )

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return unit vectors, float32 [n, D]: anchors, or contexts of another source.

        A bank is drawn in whole blocks, so that indices may exceed the anchors. Such an index
        repeats one of the first anchors and is never used.
        """
        source, seed = self.recipe.identities.source, self.recipe.seed
        if source == "uniform":
            return uniform(seed, indices, self.dimension)
        if source != "anchors":
            return self.embedded(self.identity_images(indices))
        count = self.options.anchors
        return anchors(count, self.dimension, seed)[np.array(indices) % count]

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Draw each image's context y with the cosine v ~ U[lb, ub] to its anchor.

        The target is v, because the screen compares an image with the anchor of its identity.
        """
        seed = self.recipe.seed
        lower, upper = self.options.bounds
        share = np.array([generator(place.seed(seed, "v")).random() for place in positions])
        v = lower + (upper - lower) * share
        drawn = perturb(contexts, v, [place.seed(seed, "context") for place in positions])
        return Conditions(
            context=contexts, target=v.astype(np.float32), extras={"drawn": drawn.astype("f4")}
        )

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Return the images of one batch, uint8 [B, S, S, 3], with their v and s as truth."""
        asked = [self._attributes(place) for place in positions]
        divisors = np.array([one.divisor for one in self.histograms.values()])
        s = np.array([list(one.values()) for one in asked]).reshape(len(asked), -1) / divisors
        given = np.concatenate([conditions.extras["drawn"], s], axis=1).astype(np.float32)
        seeds = [place.seed(self.recipe.seed) for place in positions]
        images = self.images(torch.from_numpy(given).to(self.device), seeds)
        truth = [
            {"v": round(float(v), 6), **{f"asked_{name}": x for name, x in one.items()}}
            for v, one in zip(conditions.target, asked, strict=True)
        ]
        return Rendered(images, truth)

    def _attributes(self, place: Position) -> dict[str, float]:
        drawn = {}
        for name, histogram in self.histograms.items():
            how = self.options.attributes.get(name, AttributeDraw())
            stage, seed = f"attribute/{name}", self.recipe.seed
            whose = seed64(seed, stage, place.identity)
            whose = whose if how.per == "identity" else place.seed(seed, stage)
            value = how.value if how.value is not None else histogram.draw(whose, how.spread)
            drawn[name] = round(value, 6)
        return drawn

    def predictor(self, given: Given, sampler: Sampler) -> Predict:
        """Return the function that predicts the adjusted score for a batch."""
        predict = super().predictor(given, sampler)
        options = self.options.score
        if options.gradient == "off":
            return predict
        module = self.teacher.module
        assert isinstance(given, Tensor)
        size, autoencoder = self.teacher.size, self.autoencoder
        assert autoencoder is not None
        return adjusted(
            predict,
            Noising(self.process),
            lambda clean: embed(module, size, autoencoder.decode(clean)),
            given[:, : self.dimension],
            options,
        )


class ID3Options(IDiffFaceOptions):
    """ID3's own fields of a train recipe; the defaults are the paper's."""

    identity: IdentityLoss = IdentityLoss(weight=1.0, max_t=1.0, glances=False)
    attributes: Annotated[tuple[str, ...], Field(min_length=1)] = ("yaw", "pitch", "roll", "age")
    reconstruction_steps: Annotated[int, Field(ge=0)] = Field(
        default=1, description="The one-step reconstruction term counts below this time step."
    )


class ID3Training(IDiffFaceTraining):
    """Train IDiff-Face's denoiser on y and s, with the ID-preserving loss (Equation 3)."""

    system = "id3"
    Options = ID3Options
    fresh = ("context.",)

    def check(self) -> None:
        """Choose the examples: the sidecars' truth, or images for weights.attributes to read."""
        super().check()
        self.reader = self.recipe.weights.get("attributes")
        self.kinds = ("embeddings", "images" if self.reader else "truth")

    @property
    def embedding_size(self) -> int:
        """Return the dimensions of y."""
        return self.config.context_size - len(self.options.attributes)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Return the names of the attributes that are read from sidecars."""
        return () if self.reader else self.options.attributes

    def fits(self) -> None:
        """Read every example's attributes, their divisors and which change sign in a mirror."""
        names = self.options.attributes
        self.read_by = "truth"
        if self.reader:
            checked_sha256("attributes", self.reader)
            reader: AttributePredictor = load_predictor(self.reader.location, self.device)
            lacking = [name for name in names if name not in reader.attributes]
            if lacking:
                raise InputError(
                    f"recipe field options.attributes: {lacking[0]}; weights.attributes reads: "
                    f"{', '.join(reader.attributes)}"
                )
            self.read_by = reader.sha256
            images = self.data.images
            read = [
                reader.predict(np.array(images[start : start + READ]))
                for start in range(0, len(images), READ)
            ]
            self.values = np.stack(
                [np.concatenate([part[name] for part in read]) for name in names], axis=1
            )
        else:
            self.values = self.data.truth
        known = [STUDIO.get(name) for name in names]  # names mean the same for every reader
        self.mirrored = np.array([one.mirrored if one else 1 for one in known], np.float32)
        units = [re.split("[ ,]", one.unit)[0] if one else "" for one in known]
        self.divisors = np.array([DIVISORS.get(unit, 1.0) for unit in units], np.float32)
        for part in ("start", "denoiser"):
            self._learned(part)

    def _learned(self, part: str) -> None:
        """Take the divisors of the denoiser that this training continues or follows.

        Raises:
            InputError: its attributes are others, or in another order.
        """
        weights, names = self.recipe.weights.get(part), list(self.options.attributes)
        if weights is None or weights.location == RANDOM_INIT:
            return
        config = json.loads(read_metadata(weights, part, "denoiser")["config"])
        held = [checked(Histogram, raw, "denoiser file: attributes.")
                for raw in config.get("attributes", [])]  # fmt: skip
        if part == "start" and len(held) != len(names):
            return  # its layer for them does not fit and begins anew
        if [one.name for one in held] != names:
            raise InputError(
                f"recipe field options.attributes: {', '.join(names)}; the denoiser of "
                f"weights.{part} accepts: {', '.join(one.name for one in held) or 'none'}, in this "
                "order"
            )
        self.divisors = np.array([one.divisor for one in held], np.float32)

    def given(self, y: np.ndarray, flip: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return [y; s], float32 [B, D + A], of examples or of their mirror images."""
        s = np.where(flip[:, None] == 1, self.values[rows] * self.mirrored, self.values[rows])
        return np.concatenate([y, s / self.divisors], axis=1).astype(np.float32)

    def draw(self, draws: np.random.Generator, rows: np.ndarray, flip: np.ndarray) -> Drawn:
        """Draw y as IDiff-Face does, with the attributes s of the target image."""
        drawn = super().draw(draws, rows, flip)
        return Drawn((self.given(drawn.given[0], flip, rows),), drawn.wanted)

    def error_weight(self, t: Tensor) -> Tensor:
        """Add the one-step reconstruction term ||x0 - x0-hat(x_1)||^2 of Equation 3.

        The error of x0-hat is the prediction's error times sigma (velocity), or times sigma /
        signal (noise). The term is therefore a weight on the prediction's error (docs/papers.md
        4.2); time steps begin at 0 here, so it counts at step 0.
        """
        factor = self.noising.sigma(t)
        if self.options.process.prediction == "epsilon":
            factor = factor / self.noising.signal(t)
        near = t < self.options.reconstruction_steps
        return super().error_weight(t) + near * factor[:, 0, 0, 0].square()

    def identity_loss(self, seen: Tensor, batch: DenoiserBatch, rows: Tensor) -> Tensor:
        """Return -w_t <y, phi(x0-hat)>, the inner-product term of Equation 3, float [n]."""
        likeness = (seen * batch.wanted["context"][rows]).sum(dim=1)
        return -likelihood_weight(self.noising.gamma(batch.t[rows])) * likeness

    def shown(self, module: nn.Module, rows: np.ndarray) -> Given:
        """Return the examples' own y, with attributes of other examples."""
        flip, others = np.zeros_like(rows), np.arange(len(rows)) % len(self.data)
        return self._array(self.given(self.data.embeddings[flip, rows], flip, others))

    def kept(self) -> dict[str, Any]:
        """Return each attribute's histogram with mirror images, in the order the network takes."""
        both = np.concatenate([self.values, self.values * self.mirrored])
        found = []
        for column, name in enumerate(self.options.attributes):
            counts, edges = np.histogram(both[:, column], BINS)
            histogram = {
                "name": name,
                "edges": [round(float(edge), 6) for edge in edges],
                "counts": counts.tolist(),
                "divisor": float(self.divisors[column]),
            }
            found.append(histogram)
        return {"attributes": found, "attributes_read_by": self.read_by}


SYSTEM = ID3
TRAINING = ID3Training
