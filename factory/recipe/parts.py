"""Parts that recipes of several kinds share."""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from factory.recipe.addresses import Address


class Part(BaseModel):
    """A frozen part of a recipe that refuses fields it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def _number(value: Any) -> Any:
    """Refuse true and false where a number stands, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()}; accepted is a number")
    return value


def _seed(value: int) -> int:
    if not 0 <= value < 2**64:
        raise ValueError(f"{value}; accepted is 0 to 2^64 - 1")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}", value):
        raise ValueError(
            f"{value[:100]!r}; accepted are 1 to 100 letters, digits, spaces, dots, - and _, of "
            "which the first is a letter or a digit"
        )
    return value


def _licence(value: str) -> str:
    if not value.strip() or len(value) > 200 or not value.isprintable():
        raise ValueError(f"{value[:100]!r}; accepted is a licence's name, as Apache-2.0 or unknown")
    return value


P = TypeVar("P", bound=BaseModel)
NUMBER = BeforeValidator(_number)
Seed = Annotated[int, NUMBER, AfterValidator(_seed)]
Name = Annotated[str, AfterValidator(_name)]  # names files, too
Licence = Annotated[str, AfterValidator(_licence)]
MOST = 10**9  # of anything that is counted and has no bound of its own
Number = Annotated[float, NUMBER]
Fraction = Annotated[float, NUMBER, Field(ge=0.0, le=1.0)]
Cosine = Annotated[float, NUMBER, Field(ge=-1.0, le=1.0)]
Positive = Annotated[int, NUMBER, Field(ge=1, le=MOST)]
Natural = Annotated[int, NUMBER, Field(ge=0, le=MOST)]
Total = Annotated[int, NUMBER, Field(ge=0)]  # of what was made: bytes and sums know no bound
AUTO = "auto"
Precision = Literal["auto", "float32", "bfloat16"]


def _whole_gpus(value: float) -> float:
    if value > 1.0 and not value.is_integer():
        raise ValueError(f"{value:g}; accepted is a share of one GPU, or a whole number of them")
    return value


Cpus = Annotated[float, NUMBER, Field(ge=0.0, le=10_000.0)]
Gpus = Annotated[float, NUMBER, Field(ge=0.0, le=1_000.0), AfterValidator(_whole_gpus)]


class Weights(Part):
    """A file of weights: where it lies, its sha256 and its licence."""

    location: Address = Field(
        description="Path, package:PATH inside the factory package, or URL without credentials. "
        "A prefix marks other projects' weights, as in adaface:FILE?channels=bgr."
    )
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    licence: Licence = "unknown"


def _named(weights: Any) -> Any:
    """Leave out entries that are null, so that `--set weights.NAME=null` drops one."""
    if not isinstance(weights, dict):
        return weights
    return {name: part for name, part in weights.items() if part is not None}


NamedWeights = Annotated[dict[str, Weights], BeforeValidator(_named)]


class Image(Part):
    """The size and the file format of the images."""

    size: Annotated[int, NUMBER, Field(ge=16, le=1024)] = Field(
        description="Height and width in pixels."
    )
    format: Literal["jpg", "png"] = "jpg"
    quality: Annotated[int, NUMBER, Field(ge=1, le=100)] = 95


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
    num_cpus: Cpus = 1.0
    num_gpus: Gpus = 0.0
    threads: Positive = Field(default=1, description="CPU threads of one actor.")
    committers: Natural = Field(
        default=0, description="Actors that only encode and write; 0: each maker does it itself."
    )
    committer_num_cpus: Cpus = 1.0

    @property
    def least(self) -> int:
        """Return how many actors there are from the start."""
        return self.max if self.min is None else self.min

    @model_validator(mode="after")
    def _ordered(self) -> "Workers":
        if self.least > self.max:
            raise ValueError(f"min is {self.min}; it must be 1 to max ({self.max})")
        return self


class NamedDataset(Part):
    """A dataset: where it lies, and the digest of what it holds."""

    url: Address = Field(description="Folder or URL, or package:PATH inside the factory package.")
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] = Field(
        description="Digest of its shards' sha256; the error for a wrong one states the right one."
    )
