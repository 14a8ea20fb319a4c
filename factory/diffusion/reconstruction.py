"""Training of the desk autoencoder: absolute errors, contours and a teacher's features."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from factory.datasets.feed import Feed
from factory.datasets.provenance import checked_sha256
from factory.diffusion.autoencoder import (
    AutoencoderConfig,
    Bottleneck,
    edge_loss,
    to_images,
    to_pixels,
)
from factory.diffusion.files import autoencoder_config, load_state, read_metadata, save_weights
from factory.diffusion.losses import identity_cosine, perceptual_loss
from factory.diffusion.trainable import Place, Trainable
from factory.recipe import InputError, Part, TrainRecipe, checked
from factory.recognition.recognizers import load_recognizer
from factory.seeding import generator, seed64

Weight = Annotated[float, Field(ge=0.0)]
GRID = 8  # number of originals and of reconstructions in the sample pictures


class ReconstructionOptions(Part):
    """The weights of an autoencoder's losses."""

    edges: Weight = Field(default=1.0, description="Differences between neighbouring pixels.")
    perceptual: Weight = Field(default=0.0, description="The teacher's early features.")
    identity: Weight = Field(default=0.0, description="1 - cosine of the teacher's embeddings.")
    freeze_encoder: bool = Field(
        default=False, description="Train the decoder alone, so that latents do not change."
    )


@dataclass(frozen=True)
class ImageBatch:
    """A batch: pixels float [B, 3, S, S] in [-1, 1], standard noise for latents, sample keys."""

    pixels: Tensor
    noise: Tensor
    keys: tuple[str, ...]


class AutoencoderTraining(Trainable):
    """Train the bottleneck autoencoder to reconstruct images."""

    file_name = "autoencoder.safetensors"

    def __init__(self, recipe: TrainRecipe, place: Place) -> None:
        """Check the recipe, open the data and make the network."""
        super().__init__(recipe, place)
        config = autoencoder_config(recipe.model, "recipe field model.")
        if not isinstance(config, AutoencoderConfig):
            raise InputError(
                f"recipe field model.kind: {config.kind!r}; this command trains the kind "
                "bottleneck only"
            )
        if config.size != recipe.image.size:
            raise InputError(
                f"recipe field model.size: {config.size}, but image.size is {recipe.image.size}"
            )
        self.config = config
        self.device = torch.device("cuda" if recipe.engine.num_gpus else "cpu")
        self.options = checked(ReconstructionOptions, recipe.options, "recipe field options.")
        self.module = Bottleneck(config)
        if "start" in recipe.weights:
            read_metadata(recipe.weights["start"], "start", "autoencoder")
            load_state(recipe.weights["start"], self.module, "start")
        if self.options.freeze_encoder:
            if "start" not in recipe.weights:
                raise InputError(
                    "recipe field weights.start: missing; options.freeze_encoder keeps its encoder"
                )
            self.module.freeze_encoder()
        self.teacher: nn.Module | None = None
        if self.options.perceptual or self.options.identity:
            if "teacher" not in recipe.weights:
                raise InputError(
                    "recipe field weights.teacher: missing; options.perceptual and "
                    "options.identity need one"
                )
            checked_sha256("teacher", recipe.weights["teacher"])
            teacher = recipe.weights["teacher"].location
            self.teacher = load_recognizer(teacher, device=self.device).module
        self.feed = Feed(
            recipe.data.urls(),
            recipe.schedule.batch_size,
            recipe.seed,
            recipe.image.size,
            recipe.data.identities,
            recipe.data.images_each,
            rank=place.rank,
            world=place.world,
            resize=recipe.data.resize,
        )
        self.steps_per_epoch = self.feed.steps_per_epoch

    def batches(self, start: int, stop: int) -> Iterator[ImageBatch]:
        """Yield images, each flipped with probability one half, and noise for their latents."""
        side = self.config.size // 4
        for batch in self.feed.batches(start, stop):
            draws = generator(seed64(self.recipe.seed, "autoencoder", batch.step, self.place.rank))
            flip = draws.random(len(batch.images)) < 0.5
            images = np.where(flip[:, None, None, None], batch.images[:, :, ::-1], batch.images)
            shape = (len(images), self.config.latent_channels, side, side)
            noise = torch.from_numpy(draws.standard_normal(shape, np.float32))
            pixels = to_pixels(torch.from_numpy(images)).to(self.device)
            yield ImageBatch(pixels, noise.to(self.device), batch.keys)

    def loss(self, module: nn.Module, batch: ImageBatch) -> tuple[Tensor, dict[str, float]]:
        """Return L1 + edges + perceptual + identity, weighted by the options, and each part."""
        made = module(batch.pixels, batch.noise)
        parts = {
            "l1": (made - batch.pixels).abs().mean(),
            "edges": edge_loss(made, batch.pixels),
        }
        loss = parts["l1"] + self.options.edges * parts["edges"]
        if self.teacher is not None and self.options.perceptual:
            parts["perceptual"] = perceptual_loss(self.teacher, made, batch.pixels)
            loss = loss + self.options.perceptual * parts["perceptual"]
        if self.teacher is not None and self.options.identity:
            with torch.no_grad():
                wanted = self.teacher(batch.pixels)
            parts["identity"] = (1.0 - identity_cosine(self.teacher, made, wanted)).mean()
            loss = loss + self.options.identity * parts["identity"]
        return loss, {name: float(value.detach()) for name, value in parts.items()}

    def samples(self, module: nn.Module) -> np.ndarray:
        """Return two rows, uint8 [2, n, S, S, 3]: originals and their reconstructions."""
        assert isinstance(module, Bottleneck)
        images = self.feed.batch(0).images[:GRID]
        with torch.inference_mode():
            pixels = to_pixels(torch.from_numpy(images)).to(self.device)
            made = to_images(module.decode(module.encode(pixels))).cpu().numpy()
        return np.stack([images, made])

    def save(self, module: nn.Module, path: Path, facts: dict[str, str]) -> None:
        """Write the autoencoder with its sizes."""
        save_weights(path, "autoencoder", module, self.config.model_dump(mode="json"), facts)
