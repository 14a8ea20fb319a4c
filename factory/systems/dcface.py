"""DCFace (Kim et al., CVPR 2023): a denoiser mixes an identity image with a style image.

Read this file beside the paper (docs/papers.md 1). Stage 1 is an unconditional model of faces; its
images, after screening, are the bank of identities. Stage 2 is the mixer. Spatial features of the
identity image and patch-wise statistics of the style image enter its attention; the identity's
embedding enters its time embedding. The mixer is trained on two images of one person, of which the
style image is also the target. When it generates, the style image may show anybody. A model without
`conditions` is one of stage 1, a model with them is one of stage 2.

Where the paper leaves room: the reference of style, of the identity loss and of the centres is the
teacher (the paper takes its centres under a larger network); the images that `trim_outliers`
replaces are the tenth furthest from their centres in the whole dataset, or as the authors' code
does of each person (`trim_within`); the identity encoder is trained without the dropout that the
code keeps in it (`model.conditions.identity_dropout`); the average kept for sampling covers the
conditioner too. Beyond the paper, each off by default: velocity, latents,
min-SNR weights, learned empty tokens with guidance, and samples without identity or without style,
which keep the mixer from reading off the style who it is, and let guidance lead from the style to
the identity in it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from factory.datasets.images import ImageBank
from factory.datasets.provenance import checked_sha256
from factory.datasets.store import Store
from factory.diffusion.autoencoder import to_pixels
from factory.diffusion.dcface import ConditionsConfig, DCFaceConfig, DCFaceNet, early_features
from factory.diffusion.examples import features
from factory.diffusion.files import RANDOM_INIT
from factory.diffusion.published import sized
from factory.diffusion.sampling import Draw, Given
from factory.diffusion.tokens import draw_kept
from factory.recipe import Fraction, InputError, Positive, checked
from factory.recognition.attributes import Predictor, load_predictor
from factory.recognition.recognizers import load_recognizer
from factory.seeding import generator
from factory.systems.base import Conditions, Position, Rendered
from factory.systems.contexts import unit
from factory.systems.inliers import nearest, trimmed
from factory.systems.sampling import DiffusionSystem, SamplingOptions
from factory.systems.styles import (
    DatasetStyles,
    StudioStyles,
    Style,
    StyleBank,
    StylesOptions,
    grouped,
)
from factory.systems.training import (
    DenoiserBatch,
    DenoiserTraining,
    Drawn,
    IdentityLoss,
    TrainingOptions,
)

BLOCK = 65_536  # embeddings read at a time
SAME_FACE = 0.95  # cosine of two embeddings of one image, whatever computed them


class DCFaceSampling(SamplingOptions):
    """DCFace's own fields of a generate recipe."""

    styles: StylesOptions = StylesOptions()
    guidance_from: Literal["nothing", "style"] = Field(
        default="nothing",
        description="The unguided prediction has only empty tokens, or the style alone.",
    )


class DCFace(DiffusionSystem):
    """Sample faces of a bank's identities in drawn styles, or unconditional faces.

    Source `bank` takes identity i from the i-th identity of a dataset, `gallery` from a studio
    person that no generator saw. `noise` samples stage 1 without conditions; each image is an
    identity of its own.
    """

    name = "dcface"
    Options = DCFaceSampling
    sources = ("bank", "gallery", "noise")
    unembedded = ("noise",)
    learns_variance = True
    torch_seed = 0  # of stage 1; a batch of stage 2 is seeded by its first label
    unperturbed = "its identity enters as an image too, which a turned context would contradict"

    def check(self) -> None:
        """Refuse fields that contradict the source of identities."""
        super().check()
        recipe, source, options = self.recipe, self.recipe.identities.source, self.options
        if recipe.identities.max_cosine != 1.0:
            raise InputError(
                f"recipe field identities.max_cosine: {recipe.identities.max_cosine}; dcface "
                "accepts 1: jobs/make_bank.py has set its identities apart"
            )
        if options.styles.draw == "matched" and "attributes" not in recipe.weights:
            raise InputError(
                "recipe field weights.attributes: missing; options.styles.draw matched needs it"
            )
        if options.styles.draw == "listed" and options.styles.dataset is None:
            raise InputError(
                "recipe field options.styles.dataset: missing; styles.draw listed takes its images"
            )
        self.banked = source != "noise"
        if source == "noise" and recipe.screens.identity_drift is not None:
            raise InputError(
                "recipe field screens.identity_drift: given; leave it out with identities.source "
                "noise, whose faces are of nobody whom they could drift from"
            )

    def open(self) -> None:
        """Open the bank, and the dataset that styles are drawn from."""
        super().open()
        size, styles = self.recipe.image.size, self.options.styles
        self.styles: StyleBank = StudioStyles(styles.people, size)
        if styles.dataset is not None:
            field = "recipe field options.styles.dataset"
            self.styles = DatasetStyles(ImageBank(styles.dataset, size, field))

    def origins(self) -> tuple[Store, ...]:
        """Return the bank of identities and the dataset of styles, if there are any."""
        styles = self.styles
        found = (styles.images.store,) if isinstance(styles, DatasetStyles) else ()
        return (*super().origins(), *found)

    def build(self, config: dict[str, Any]) -> nn.Module:
        """Make the network; a U-Net whose file tells no size is the recipe's."""
        model = sized(config["model"], self.recipe.image.size)
        self.model = checked(DCFaceConfig, model, "denoiser file: model.")
        return DCFaceNet(self.model)

    def fits(self) -> None:
        """Refuse a denoiser that does not suit the recipe, and another teacher than its own."""
        recipe, sizes = self.recipe, self.model.conditions
        named = f"recipe field weights.denoiser.location: {recipe.weights['denoiser'].location}"
        if sizes is None and self.banked:
            raise InputError(f"{named} has no conditions: identities.source accepts noise")
        learned = sizes is not None and sizes.learn_empty
        if not learned and (self.sampler.guidance_scale > 1.0 or (sizes and not self.banked)):
            raise InputError(
                f"{named} learned no empty tokens: accepted are sampler.guidance_scale 1 and, of a "
                "model with conditions, identities.source bank or gallery"
            )
        unet = self.model.unet
        if self.sampler.variance == "learned" and unet.out_channels != 2 * unet.in_channels:
            raise InputError(
                f"recipe field sampler.variance: learned; the denoiser has {unet.out_channels} "
                "channels, accepted is beta"
            )
        if self.banked:
            self.own_teacher()
        self.predictor_of: Predictor | None = None
        if self.options.styles.draw == "matched":
            checked_sha256("attributes", recipe.weights["attributes"])
            given = recipe.weights["attributes"].location
            self.predictor_of = load_predictor(given, self.device)
            unknown = set(self.options.styles.groups) - set(self.predictor_of.attributes)
            if unknown:
                raise InputError(
                    f"recipe field options.styles.groups: {', '.join(sorted(unknown))}; {given} "
                    f"accepts: {', '.join(self.predictor_of.attributes)}"
                )

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return the unit embeddings of identity images, float32 [n, D]; [n, 0] for `noise`."""
        if not self.banked:
            return np.zeros((len(indices), 0), np.float32)
        return self.embedded(self.identity_images(indices))

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Choose a style for each position; the target cosine to the identity image is 1."""
        target = np.ones(len(positions), np.float32)
        if not self.banked:
            return Conditions(contexts, target)
        numbers = sorted({position.identity for position in positions})
        images = dict(zip(numbers, self.identity_images(numbers), strict=True))
        who = np.stack([images[position.identity] for position in positions])
        chosen = [
            self._style(position, image, context)
            for position, image, context in zip(positions, who, contexts, strict=True)
        ]
        extras = {
            "who": who,
            "style": np.stack([self.styles.image(style) for style in chosen]),
            "drawn": np.array(chosen, np.int64),
        }
        return Conditions(contexts, target, extras)

    def _style(self, position: Position, image: np.ndarray, context: np.ndarray) -> Style:
        options = self.options.styles
        draws = generator(position.seed(self.recipe.seed, "style"))
        if options.draw == "random":
            return self.styles.draw(draws)
        if options.draw == "listed":
            assert isinstance(self.styles, DatasetStyles)
            return self.styles.listed(position.slot)
        drawn = [self.styles.draw(draws) for _ in range(options.candidates)]
        if options.draw == "similar":
            faces = self.embedded(np.stack([self.styles.image(style) for style in drawn]))
            return drawn[int((faces @ context).argmax())]
        assert self.predictor_of is not None
        wanted = grouped(self.predictor_of, options.groups, [image], [{}])[0]
        pictures = [self.styles.image(style) for style in drawn]
        truths = [self.styles.truth(style) for style in drawn]
        groups = grouped(self.predictor_of, options.groups, pictures, truths)
        return drawn[int((groups != wanted).sum(axis=1).argmin())]

    @torch.no_grad()
    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Return the images of one batch, uint8 [B, S, S, 3].

        Raises:
            InputError: an identity image does not match its context.
        """
        seeds = [position.seed(self.recipe.seed) for position in positions]
        if not self.banked:
            made = self.images(None, seeds, draw=self.noise(positions))
            return Rendered(made, [{} for _ in positions])
        who, style = (
            to_pixels(torch.from_numpy(conditions.extras[name])).to(self.device)
            for name in ("who", "style")
        )
        embedding, spatial = features(self.teacher.module, self.teacher.size, who)
        cosine = (unit(embedding.cpu().numpy()) * conditions.context).sum(axis=1)
        if cosine.min() < SAME_FACE:
            at = positions[int(cosine.argmin())].identity
            raise InputError(
                f"recipe field options.bank: the image of identity {at} has cosine "
                f"{cosine.min():.3f} to its context; the bank holds one image twice"
            )
        early = early_features(self.teacher.module, self.teacher.size, style)
        network = self.network
        assert isinstance(network, DCFaceNet)
        given = (embedding, spatial) if network.encoder is None else (who,)
        images = self.images(network.mixed(*given, early), seeds, draw=self.noise(positions))
        drawn = (Style(*map(int, row)) for row in conditions.extras["drawn"])
        return Rendered(images, [{"style": self.styles.key(one)} for one in drawn])

    def denoise(
        self, x: Tensor, t: Tensor, given: Given, keep: Tensor | None, empty: Tensor | None
    ) -> Tensor:
        """Call the network with conditions that are encoded already."""
        assert isinstance(self.network, DCFaceNet) and not isinstance(given, Tensor)
        if empty is not None and self.options.guidance_from == "style":
            empty = torch.stack([empty, torch.zeros_like(empty)], dim=1)
        whole = self.sampler.variance == "learned"
        return self.network.denoise(x, t, given, keep, empty, whole)

    def noise(self, positions: Sequence[Position]) -> Draw | None:
        """Return what draws a batch's noise: torch's generator is seeded by its first label."""
        if self.sampler.noise == "torch" and self.banked:
            self.stream = torch.Generator().manual_seed(positions[0].identity)
        return super().noise(positions)


class DCFaceOptions(TrainingOptions):
    """DCFace's own fields of a train recipe; the defaults are the paper's."""

    near: Positive = Field(
        default=4, description="Identity images are drawn among this many nearest to the centre."
    )
    trim_outliers: bool = Field(
        default=True, description="Replace images far from the centre by others of the person."
    )
    trim_within: Literal["dataset", "person"] = Field(
        default="dataset", description="The tenth that is far is that of all images, or of each's."
    )
    identity_loss: Literal["interpolated", "identity", "style"] = Field(
        default="interpolated",
        description="Which image's face x0-hat must have; interpolated: both, weighted by t/T.",
    )
    identity: IdentityLoss = IdentityLoss(weight=0.05, max_t=1.0, glances=False)
    identity_empty_prob: Fraction = Field(
        default=0.0, description="Share of training samples without identity."
    )
    style_empty_prob: Fraction = Field(
        default=0.0, description="Share of training samples without style."
    )


class DCFaceTraining(DenoiserTraining):
    """Train stage 1, the unconditional model, or stage 2, the mixer."""

    system = "dcface"
    Model = DCFaceConfig
    Options = DCFaceOptions
    fresh = ("encoder.", "identity.", "style.", "adapter.")

    def check(self) -> None:
        """Refuse options for conditions that the model lacks, or for empty tokens it lacks."""
        self.sizes: ConditionsConfig | None = self.config.conditions
        self.lacking = (self.options.identity_empty_prob, self.options.style_empty_prob)
        learned = self.sizes is not None and self.sizes.learn_empty
        for name in ("empty_context_prob", "identity_empty_prob", "style_empty_prob"):
            prob = getattr(self.options, name)
            if prob and not learned:
                raise InputError(
                    f"recipe field options.{name}: {prob}; without model.conditions.learn_empty "
                    "accepted is 0"
                )
        if self.sizes is None:
            self.kinds = ()
            if self.options.identity.weight:
                raise InputError(
                    f"recipe field options.identity.weight: {self.options.identity.weight}; "
                    "a model without conditions accepts 0"
                )
        else:
            who = () if self.sizes.identity_encoder else ("norms", "maps")
            self.kinds = ("embeddings", "images", *who)

    def build(self) -> nn.Module:
        """Make the network; an identity encoder starts from the weights that the recipe names."""
        network = DCFaceNet(self.config)
        if self.sizes is None or not self.sizes.identity_encoder:
            return network
        if "identity_encoder" not in self.recipe.weights:
            raise InputError(
                "recipe field weights.identity_encoder: missing; model.conditions."
                "identity_encoder is trained from it"
            )
        location = self.recipe.weights["identity_encoder"].location
        if location == RANDOM_INIT:
            self.random_init = (*self.random_init, "identity_encoder")
            return network
        checked_sha256("identity_encoder", self.recipe.weights["identity_encoder"])
        given = load_recognizer(location)
        assert network.encoder is not None
        try:
            network.encoder.load_state_dict(given.module.state_dict())
        except RuntimeError as error:
            raise InputError(
                f"recipe field weights.identity_encoder.location: {location} is no "
                f"{self.sizes.identity_encoder} of {self.sizes.identity_size} pixels"
            ) from error
        return network

    @property
    def embedding_size(self) -> int:
        """Return the dimensions of the embeddings that the network takes."""
        return (self.sizes or ConditionsConfig()).embedding_size

    def fits(self) -> None:
        """Check the sizes of the conditions, and choose the identity images of each person."""
        if self.sizes is None:
            return
        count = np.diff(self.data.first)
        if count.min() < 2:
            raise InputError(
                f"recipe field data.train: identity {int(count.argmin())} has {count.min()} image; "
                "dcface needs two or more of each"
            )
        first = np.zeros(1, np.int64)
        early = self._early(torch.from_numpy(self.data.pixels(first, first)))
        found: dict[str, tuple[int, ...]] = {"style": early.shape[1:]}
        if "maps" in self.kinds:
            found["map"] = self.data.maps.shape[2:]
        for name, shape in found.items():
            channels = getattr(self.sizes, f"{name}_channels")
            size = getattr(self.sizes, f"{name}_size")
            if tuple(shape) != (channels, size, size):
                raise InputError(
                    f"recipe field model.conditions.{name}_channels, {name}_size: {channels}, "
                    f"{size}; the teacher makes {shape[0]}, {shape[1]}"
                )
        cosines = self._centredness()
        self.nearest = nearest(self.data, cosines, self.options.near)
        self.target = np.arange(len(self.data))
        if self.options.trim_outliers:
            within = self.options.trim_within
            self.target = trimmed(self.data, cosines, self.nearest, within, self.recipe.seed)

    def _centredness(self) -> np.ndarray:
        """Return each image's cosine to the mean embedding of its person, float32 [N]."""
        data = self.data
        sums = np.zeros((len(data.first) - 1, data.embeddings.shape[2]), np.float32)
        blocks = [slice(start, start + BLOCK) for start in range(0, len(data), BLOCK)]
        for block in blocks:
            np.add.at(sums, data.labels[block], data.embeddings[0, block].astype(np.float32))
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return np.concatenate(
            [
                (data.embeddings[0, block].astype(np.float32) * centres[data.labels[block]]).sum(1)
                for block in blocks
            ]
        )

    def _batch(self, rows: np.ndarray, step: int, key: int, part: slice) -> DenoiserBatch:
        return super()._batch(rows if self.sizes is None else self.target[rows], step, key, part)

    def draw(self, draws: np.random.Generator, rows: np.ndarray, flip: np.ndarray) -> Drawn:
        """Draw the identity image of each target; the target itself is the style image.

        The two are mirrored independently of each other. A student has no target: as in sampling,
        its style image need not be of the person; it is that of another row.
        """
        if self.sizes is None:
            return Drawn(())
        data, count = self.data, len(rows)
        mirrored = (draws.random(count) < 0.5).astype(np.int64)
        who = self.identity_rows(rows, draws.random(count))
        if self.segments is not None:
            rows = np.roll(rows, 1)
        if self.sizes.identity_encoder:
            given = (data.pixels(mirrored, who),)
        else:
            given = self._features(mirrored, who)
        wanted = {
            "context": data.embeddings[mirrored, who],
            "style": data.embeddings[flip, rows],
            "pixels": data.pixels(flip, rows),
            "seeds": draws.integers(2**63, size=count),
            "lacking": draws.random((count, 2)) < self.lacking,
        }
        return Drawn(given, wanted)

    def identity_rows(self, rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Return the identity image of each target: one nearest to the centre, but not the target.

        Args:
            rows: rows of the targets, int64 [B].
            shares: uniform draws in [0, 1), float [B].
        """
        near = self.nearest[self.data.labels[rows]]
        usable = (near >= 0) & (near != rows[:, None])
        usable |= (near >= 0) & ~usable.any(axis=1, keepdims=True)
        wanted = (shares * usable.sum(axis=1)).astype(np.int64)
        column = (usable.cumsum(axis=1) == wanted[:, None] + 1).argmax(axis=1)
        return near[np.arange(len(rows)), column]

    def _features(self, flip: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        data = self.data
        norms = data.norms[flip, rows].astype(np.float32)[:, None]
        return data.embeddings[flip, rows].astype(np.float32) * norms, data.maps[flip, rows]

    @torch.no_grad()
    def _early(self, pixels: Tensor) -> Tensor:
        return early_features(self.teacher, self.teacher_size, pixels.to(self.device))

    def taken(self, batch: DenoiserBatch) -> Given:
        """Return the network's `given`: identity, style features, kept features, missing parts."""
        if self.sizes is None:
            return None
        assert isinstance(self.module, DCFaceNet)
        style = self.module.style
        kept = draw_kept(batch.wanted["seeds"].tolist(), style.shape, style.dropout)
        early = self._early(batch.wanted["pixels"])
        return (*batch.given, early, kept.to(self.device), batch.wanted["lacking"])

    def identity_loss(self, seen: Tensor, batch: DenoiserBatch, rows: Tensor) -> Tensor:
        """Return L_ID = g (1 - cos to the identity) + (1 - g) (1 - cos to the style), g = t / T.

        A sample without identity does not count (docs/papers.md 1.2).
        """
        apart = {
            name: 1.0 - (seen * batch.wanted[name][rows]).sum(dim=1)
            for name in ("context", "style")
        }
        gamma = self.noising.gamma(batch.t[rows])
        if self.options.identity_loss != "interpolated":
            gamma = torch.full_like(gamma, self.options.identity_loss == "identity")
        loss = gamma * apart["context"] + (1.0 - gamma) * apart["style"]
        return loss * ~batch.wanted["lacking"][rows, 0]

    def shown(self, module: nn.Module, rows: np.ndarray) -> Given:
        """Return each row's image as identity, with styles spread over the dataset."""
        if self.sizes is None:
            return None
        straight = np.zeros(len(rows), np.int64)
        styles = np.linspace(0, len(self.data) - 1, len(rows)).astype(np.int64)
        early = self._early(torch.from_numpy(self.data.pixels(straight, styles)))
        if self.sizes.identity_encoder:
            return self._array(self.data.pixels(straight, rows)), early
        embedding, spatial = self._features(straight, rows)
        return self._array(embedding), self._array(spatial), early


SYSTEM = DCFace
TRAINING = DCFaceTraining
