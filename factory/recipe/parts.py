"""Parts that recipes of several kinds share."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from factory.recipe.addresses import Address


class Part(BaseModel):
    """A frozen part of a recipe that refuses fields it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


P = TypeVar("P", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
AUTO = "auto"
Precision = Literal["auto", "float32", "bfloat16"]


class Weights(Part):
    """A file of weights, named by where it lies and what it holds."""

    location: Address = Field(
        description="Path, package:PATH inside the factory package, or URL without credentials; "
        "or one of them behind a prefix, as adaface:FILE?channels=bgr."
    )
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    licence: str = "unknown"


def _named(weights: Any) -> Any:
    """Leave out entries that are null, so that `--set weights.NAME=null` drops one."""
    if not isinstance(weights, dict):
        return weights
    return {name: part for name, part in weights.items() if part is not None}


NamedWeights = Annotated[dict[str, Weights], BeforeValidator(_named)]


class Image(Part):
    """What an image of the dataset is."""

    size: Annotated[int, Field(ge=16, le=1024)] = Field(description="Height and width in pixels.")
    format: Literal["jpg", "png"] = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95


class KnownFaces(Part):
    """Embeddings of real faces under the teacher, named by where they lie and what they are."""

    location: Address = Field(
        description="Path or URL of a .safetensors, .npy or .parquet file, or of a folder of such."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Workers(Part):
    """The actors that do the work, and what each of them reserves."""

    max: Positive = Field(description="Most actors that make images.")
    min: Positive | None = Field(
        default=None,
        description="Fewest; Ray adds and removes actors between. Default: max.",
    )
    num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = Field(default=1, description="CPU threads of one actor.")
    committers: Natural = Field(
        default=0, description="Actors that encode and write apart from the makers; 0: makers do."
    )
    committer_num_cpus: Annotated[float, Field(ge=0.0)] = 1.0

    @property
    def least(self) -> int:
        """Return how many actors there are from the start."""
        return self.max if self.min is None else self.min

    @model_validator(mode="after")
    def _ordered(self) -> "Workers":
        if self.least > self.max:
            raise ValueError(f"min is {self.min}, accepted is 1 to max ({self.max})")
        return self


class NamedDataset(Part):
    """A dataset, named by where it lies and what it holds."""

    url: Address = Field(description="Folder or URL, or package:PATH inside the factory package.")
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(
        description="Of the sha256 of its shards; a wrong one is answered with the right one."
    )
