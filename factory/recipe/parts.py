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
    """A file of weights: where it lies, its sha256 and its licence."""

    location: Address = Field(
        description="Path, package:PATH inside the factory package, or URL without credentials. "
        "A prefix marks other projects' weights, as in adaface:FILE?channels=bgr."
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
    """The size and the file format of the images."""

    size: Annotated[int, Field(ge=16, le=1024)] = Field(description="Height and width in pixels.")
    format: Literal["jpg", "png"] = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95


class KnownFaces(Part):
    """Embeddings of real faces under the teacher: where they lie, and their sha256."""

    location: Address = Field(
        description="Path or URL of a .safetensors, .npy or .parquet file, or of a folder of them."
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Workers(Part):
    """The actors that do the work, and what each of them reserves."""

    max: Positive = Field(description="Largest number of makers.")
    min: Positive | None = Field(
        default=None,
        description="Smallest number of makers; Ray adds and removes between. Default: max.",
    )
    num_cpus: Annotated[float, Field(ge=0.0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0.0)] = 0.0
    threads: Positive = Field(default=1, description="CPU threads of one actor.")
    committers: Natural = Field(
        default=0, description="Actors that only encode and write; 0: each maker does it itself."
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
    """A dataset: where it lies, and the digest of what it holds."""

    url: Address = Field(description="Folder or URL, or package:PATH inside the factory package.")
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(
        description="Digest of its shards' sha256; the error for a wrong one states the right one."
    )
