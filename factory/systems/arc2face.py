"""Arc2Face (Paraperas Papantoniou et al., ECCV 2024): Stable Diffusion, told who by an embedding.

Read this file beside docs/papers.md 5. The U-Net and CLIP's text encoder of Stable Diffusion 1.5
were trained further, on one prompt: `photo of a id person`. In the place of the embedding of its
token `id` stands the recognizer's embedding of a face, at length one, with zeros behind it. The
encoder's states of all 77 tokens are what the U-Net's attention looks at. Guidance leads away from
the empty prompt, as diffusers does. An identity is one embedding; noise makes its images differ,
and with `options.perturb` an embedding of each image's own.

Images have 512 pixels and are framed as FFHQ's are. Recognizers want them aligned, which
`prepare --align` does afterwards; the cosines that are found while images are made are of images
resized as they are. Weights are the authors' (docs/paper-scale.md); nothing is trained here.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from factory.diffusion.autoencoder import KL
from factory.diffusion.clip import check_text_encoder, load_text_encoder
from factory.diffusion.sampling import Given
from factory.diffusion.stable import StableConfig, StableUNet
from factory.recipe import InputError, Natural, Part, Positive, checked
from factory.systems.base import Conditions, Position, Rendered
from factory.systems.context_file import ContextsFile, check_source, read_contexts
from factory.systems.contexts import uniform
from factory.systems.sampling import DiffusionSystem, SamplingOptions


class Prompt(Part):
    """The prompt, as token ids; the defaults are those of CLIP's vocabulary."""

    start: Natural = 49_406
    words: Annotated[tuple[Natural, ...], Field(min_length=1)] = Field(
        default=(1_125, 539, 320, 1_014, 2_533), description="photo of a id person"
    )
    person: Natural = Field(
        default=1_014, description="The one of the words that the embedding stands for."
    )
    end: Natural = Field(default=49_407, description="Ends the prompt and fills it up.")

    @model_validator(mode="after")
    def _one_person(self) -> "Prompt":
        if self.words.count(self.person) != 1:
            raise ValueError(
                f"person is {self.person}, words have it {self.words.count(self.person)} times; "
                "accepted is one of the words, which is there once"
            )
        return self

    @property
    def place(self) -> int:
        """Return the place of the person among the tokens."""
        return 1 + self.words.index(self.person)

    def filled(self, places: int, words: tuple[int, ...]) -> Tensor:
        """Return start, words and end, filled up with ends, int64 [1, places]."""
        ids = [self.start, *words]
        return torch.tensor([ids + [self.end] * (places - len(ids))])


class Arc2FaceSampling(SamplingOptions):
    """Arc2Face's own fields of a generate recipe."""

    contexts: ContextsFile | None = Field(
        default=None, description="For identities.source file: identity i is its i-th vector."
    )
    prompt: Prompt = Prompt()
    embedding_size: Positive = Field(
        default=512, description="Of the recognizer that the weights were trained with."
    )
    bank_size: Positive = Field(
        default=112,
        description="For identities.source bank: height and width of its images, aligned as the "
        "recognizer wants them.",
    )


class Arc2Face(DiffusionSystem):
    """Sample faces of given embeddings from Stable Diffusion's networks.

    Source `bank` embeds the first image of each of a dataset's identities, which are aligned and
    smaller than what is made, `file` takes vectors in their order, `gallery` embeds pictures of
    studio people, and `uniform` draws on the sphere, of which real faces fill a part.
    """

    name = "arc2face"
    Options = Arc2FaceSampling
    sources = ("bank", "file", "gallery", "uniform")
    weights = ("denoiser", "encoder", "autoencoder", "teacher")
    unembedded = ("file", "uniform")

    def check(self) -> None:
        """Refuse contexts of a file without the source that takes them."""
        super().check()
        check_source(self.options.contexts, self.recipe.identities.source)

    def open(self) -> None:
        """Open the bank or the file of contexts, and look at others' files."""
        super().open()
        self.contexts = read_contexts(self.options.contexts, self.recipe.identities.count)
        vocabulary = check_text_encoder(self.recipe.weights["encoder"], "encoder").vocabulary
        prompt = self.options.prompt
        for field in ("start", "words", "end"):
            ids = getattr(prompt, field)
            for one in ids if isinstance(ids, tuple) else (ids,):
                if one >= vocabulary:
                    raise InputError(
                        f"recipe field options.prompt.{field}: {one}; the vocabulary of "
                        f"weights.encoder.location accepts ids below {vocabulary}"
                    )

    @property
    def bank_size(self) -> int:
        """Return height and width of the bank's images."""
        return self.options.bank_size

    def build(self, config: dict[str, Any]) -> nn.Module:
        """Make the denoiser."""
        self.model = checked(StableConfig, config["model"], "denoiser file: model.")
        return StableUNet(self.model)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of an image's latents."""
        assert isinstance(self.autoencoder, KL)
        halved = 2 ** (len(self.autoencoder.config.widths) - 1)
        side = self.recipe.image.size // halved
        return self.model.latent_channels, side, side

    def fits(self) -> None:
        """Load the text encoder, and refuse networks that do not fit together."""
        weights, size = self.recipe.weights, self.options.embedding_size
        self.encoder = load_text_encoder(weights["encoder"], "encoder").to(self.device)
        text, prompt = self.encoder.config, self.options.prompt
        if text.width != self.model.context_size:
            raise InputError(
                f"recipe field weights.encoder.location: states of {text.width}; the denoiser's "
                f"cross_attention_dim accepts {self.model.context_size}"
            )
        if not isinstance(self.autoencoder, KL) or (
            self.autoencoder.config.latent_channels != self.model.latent_channels
        ):
            raise InputError(
                "recipe field weights.autoencoder.location: not what the denoiser was trained on; "
                f"accepted is an AutoencoderKL of {self.model.latent_channels} latent channels"
            )
        if len(prompt.words) + 2 > text.places:
            raise InputError(
                f"recipe field options.prompt.words: {len(prompt.words)} ids; the encoder accepts "
                f"{text.places - 2}"
            )
        if size > text.width:
            raise InputError(
                f"recipe field options.embedding_size: {size}; the encoder's tokens accept "
                f"{text.width}"
            )
        if len(self.contexts) and self.contexts.shape[1] != size:
            raise InputError(
                f"recipe field options.contexts.url: vectors of {self.contexts.shape[1]}; "
                f"options.embedding_size is {size}"
            )
        self.suits(size, True)  # guidance takes the empty prompt
        self.ids = prompt.filled(text.places, prompt.words).to(self.device)
        with torch.no_grad():
            self.nobody = self.encoder(prompt.filled(text.places, ()).to(self.device))

    def draw_contexts(self, indices: Sequence[int]) -> np.ndarray:
        """Return unit contexts, float32 [n, D]; each depends on its index alone."""
        source = self.recipe.identities.source
        if source == "file":
            return self.contexts[[index % len(self.contexts) for index in indices]]
        if source == "uniform":
            return uniform(self.recipe.seed, indices, self.options.embedding_size)
        return self.embedded(self.identity_images(indices))

    def vary(self, contexts: np.ndarray, positions: Sequence[Position]) -> Conditions:
        """Return the contexts, turned where options.perturb says so; else noise alone varies."""
        return self.turned(contexts, positions)

    @torch.no_grad()
    def tokens(self, embeddings: Tensor) -> Tensor:
        """Return what attention looks at, float32 [B, 77, 768], for unit embeddings [B, D]."""
        padded = F.pad(embeddings, (0, self.encoder.config.width - embeddings.shape[1]))
        ids = self.ids.expand(len(embeddings), -1)
        return self.encoder(ids, self.options.prompt.place, padded)

    def sample(self, conditions: Conditions, positions: Sequence[Position]) -> Rendered:
        """Return the images of one batch, uint8 [B, S, S, 3]."""
        seeds = [position.seed(self.recipe.seed) for position in positions]
        used, truth = self.used(conditions)
        return Rendered(self.images(self.tokens(used), seeds), truth)

    def denoise(
        self, x: Tensor, t: Tensor, given: Given, keep: Tensor | None, empty: Tensor | None
    ) -> Tensor:
        """Call the U-Net with each image's tokens, or those of the empty prompt."""
        assert given is None or isinstance(given, Tensor)
        if given is None:
            given = self.nobody.expand(len(x), -1, -1)
        elif empty is not None:
            given = torch.where(empty[:, None, None], self.nobody, given)
        return self.network(x, t, given)


SYSTEM = Arc2Face
