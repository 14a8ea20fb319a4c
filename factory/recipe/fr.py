"""Recipes of kind `fr`: a face recognizer."""

from typing import Annotated, Literal

from pydantic import Field

from factory.recipe.addresses import Address
from factory.recipe.parts import NUMBER, Fraction, Image, Licence, Name, Part, Positive, Seed
from factory.recipe.train import Checkpoints, Data, Engine, Optimizer, Schedule


class Backbone(Part):
    """The recognizer's network."""

    name: Literal["r18", "r34", "r50", "r100", "r200", "ir_se50", "iresnet", "mobilefacenet"]
    embedding_size: Positive = 512
    widths: tuple[Positive, ...] = Field(default=(), description="For iresnet: four widths.")
    depths: tuple[Positive, ...] = Field(default=(), description="For iresnet: four depths.")
    dropout: Fraction = 0.0


class Head(Part):
    """The margin loss over class centres."""

    name: Literal["cosface", "arcface", "arcface_straight_through", "adaface"] = Field(
        description="arcface_straight_through has arcface's values and arcface_torch's gradients."
    )
    scale: Annotated[float, NUMBER, Field(gt=0.0)] = 64.0
    margin: Annotated[float, NUMBER, Field(ge=0.0)] = 0.4
    h: Annotated[float, NUMBER, Field(gt=0.0)] = Field(default=0.333, description="AdaFace's h.")
    sample_rate: Annotated[float, NUMBER, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="Partial FC: share of the class centres that a step compares with."
    )


class FRRecipe(Part):
    """A training of a face recognizer."""

    kind: Literal["fr"]
    name: Name
    seed: Seed
    licence: Licence
    image: Image
    data: Data
    backbone: Backbone
    head: Head
    optimizer: Optimizer
    schedule: Schedule
    engine: Engine
    checkpoint: Checkpoints
    augment: tuple[str, ...] = Field(default=("flip",), description="Augmentations, in order.")
    benchmarks: Address = Field(
        default="", description="Folder of .bin files, evaluated at the end."
    )
