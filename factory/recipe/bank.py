"""Recipes of kind `bank`: a dataset of identities, one image each."""

from typing import Literal

from pydantic import Field, model_validator

from factory.recipe.generate import GenerateRecipe
from factory.recipe.parts import (
    Cosine,
    KnownFaces,
    Licence,
    Name,
    NamedDataset,
    NamedWeights,
    Part,
    Positive,
    Seed,
    Workers,
)


class AttributeRule(Part):
    """Keep faces whose attribute lies in a range, both ends included."""

    attribute: str
    low: float | None = None
    high: float | None = None


class BankRecipe(Part):
    """A bank of identities, one image each, chosen from candidates (DCFace, docs/papers.md 1.3)."""

    kind: Literal["bank"]
    name: Name
    seed: Seed = Field(description="Seed of the draw.")
    licence: Licence
    candidates: NamedDataset | None = Field(
        default=None, description="A dataset; the first image of each identity is a candidate."
    )
    generate: GenerateRecipe | None = Field(
        default=None, description="A recipe that makes the candidates instead, in OUT-candidates."
    )
    weights: NamedWeights = Field(
        description="`recognizer` compares faces; `attributes` is needed by rules and groups."
    )
    max_cosine: Cosine = Field(description="r: kept identities have cosines below this.")
    known: KnownFaces | None = Field(
        default=None, description="Real faces; a candidate at r or more to one of them is dropped."
    )
    rules: tuple[AttributeRule, ...] = ()
    count: Positive | None = Field(default=None, description="How many to draw; default: all.")
    draw: Literal["first", "random", "balanced"] = Field(
        default="first", description="In key order, at random, or equally many of each group."
    )
    groups: dict[str, tuple[float, ...]] = Field(
        default={}, description="For balanced: attributes, and the values that cut their range."
    )
    shard_images: Positive = 1000
    workers: Workers

    @model_validator(mode="after")
    def _complete(self) -> "BankRecipe":
        if (self.candidates is None) == (self.generate is None):
            raise ValueError("candidates, generate: exactly one of the two must be given")
        if "recognizer" not in self.weights:
            raise ValueError("weights.recognizer is missing")
        if (self.rules or self.groups) and "attributes" not in self.weights:
            raise ValueError("weights.attributes is missing; rules and groups need it")
        if (self.draw == "balanced") != bool(self.groups):
            raise ValueError(
                f"draw is {self.draw!r} and groups {self.groups}; balanced needs groups, no other"
            )
        return self
