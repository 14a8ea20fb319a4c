"""Recipes of kind `generate`: a dataset of labelled synthetic faces."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from factory.recipe.addresses import prefix_of
from factory.recipe.parts import (
    AUTO,
    NUMBER,
    Cosine,
    Fraction,
    Image,
    KnownFaces,
    Licence,
    Name,
    NamedWeights,
    Number,
    Part,
    Positive,
    Precision,
    Seed,
    Weights,
    Workers,
)

HOLD_TEACHER = ("dcface",)  # prefixes of denoisers with a recognizer inside their file
LATER = ("spacing", "offset", "noiseless", "variance", "noise")  # a sampler had not always
SPACED = {  # samplers of which the steps' spacing may be stated
    **{"ddim": ("trailing", "leading"), "ddpm": ("leading", "even")},
    **{"dpmsolver++": ("even",)},
}
SCREENS = ("identity_drift", "near_duplicate", "real_lookalike")  # those that reject images
Seconds = Annotated[Number, Field(gt=0.0, le=1e6)]


class Identities(Part):
    """How many identities and images, and where the identities come from."""

    count: Annotated[Positive, Field(le=10_000_000)]  # a key has seven digits for an identity
    images_each: Annotated[Positive, Field(le=10_000)]  # and four for a slot
    source: str = Field(description="How the system draws identities; each system names its own.")
    max_cosine: Cosine = Field(
        default=1.0, description="No two contexts of the bank have a higher cosine than this."
    )


class ShardShape(Part):
    """How many identities and slots one shard holds."""

    identities: Positive
    slots: Positive | None = Field(default=None, description="Default: identities.images_each.")


class Sampler(Part):
    """The sampler of a diffusion model: its name, steps, guidance and batch."""

    name: Literal["ddpm", "ddim", "dpmsolver++", "unipc"]
    steps: Annotated[Positive, Field(le=10_000)]
    guidance_scale: Annotated[float, NUMBER, Field(ge=1.0)] = Field(
        default=1.0, description="g in diffusers' convention u + g (c - u); 1 is off."
    )
    eta: Fraction = 0.0
    spacing: Literal["trailing", "leading", "even"] | None = Field(
        default=None,
        description="Which steps of the process fewer steps are: leading begins below T - 1 and "
        "ends at 0, even includes both. Default: trailing for ddim, leading for ddpm; dpmsolver++ "
        "accepts even, and by default spaces its steps evenly in log SNR.",
    )
    offset: Annotated[int, NUMBER, Field(ge=0, le=1)] = Field(
        default=0,
        description="For ddim's leading steps: added to each. With 1, as Stable Diffusion has it, "
        "the last step ends at step 0 of the process instead of beyond it.",
    )
    noiseless: Positive = Field(
        default=1, description="For ddpm: so many of the last steps add no noise."
    )
    variance: Literal["beta", "learned"] = Field(
        default="beta",
        description="For ddpm: of a step's noise, beta, or what the network predicts in a range "
        "(Nichol and Dhariwal 2021).",
    )
    noise: Literal["position", "torch"] = Field(
        default="position",
        description="Whether an image's noise follows from its position alone, or from torch's "
        "generator and the order in which a shard's images are made.",
    )
    batch_size: Annotated[Positive, Field(le=65_536)] = 16
    dtype: Precision = Field(
        default=AUTO,
        description="Of sampling and screening; auto: bfloat16 if the workers' processors are "
        "faster in it.",
    )

    @property
    def exact(self) -> bool:
        """Tell whether a field is set that recipes did not always have, as in published scripts."""
        fields = type(self).model_fields
        return any(getattr(self, name) != fields[name].default for name in LATER)

    @model_validator(mode="after")
    def _possible(self) -> "Sampler":
        accepted = SPACED.get(self.name, ())
        if self.spacing and self.spacing not in accepted:
            raise ValueError(
                f"spacing is {self.spacing}; with name {self.name} it must be "
                f"{' or '.join(accepted) or 'null'}"
            )
        if self.offset and (self.name, self.spacing) != ("ddim", "leading"):
            raise ValueError(
                f"offset is {self.offset}; with name {self.name} and spacing "
                f"{self.spacing or 'null'} it must be 0, for it belongs to ddim's leading steps"
            )
        for field, default in (("noiseless", 1), ("variance", "beta")):
            value = getattr(self, field)
            if value != default and self.name != "ddpm":
                raise ValueError(f"{field} is {value}; with name {self.name} it must be {default}")
        return self


class IdentityDrift(Part):
    """Reject an image whose cosine to its context is more than `tolerance` from the target."""

    tolerance: Annotated[float, NUMBER, Field(gt=0.0, le=2.0)]


class NearDuplicate(Part):
    """Reject an image whose cosine to an earlier kept one of its identity exceeds `max_cosine`."""

    max_cosine: Cosine


class RealLookalike(Part):
    """Reject an image whose cosine to any of the embeddings exceeds `max_cosine` (teacher)."""

    max_cosine: Cosine
    embeddings: KnownFaces


class Screens(Part):
    """Which images are rejected, and how often a rejected slot is tried again."""

    identity_drift: IdentityDrift | None = None
    near_duplicate: NearDuplicate | None = None
    real_lookalike: RealLookalike | None = None
    max_attempts: Annotated[Positive, Field(le=1_000)] = 3


class Cost(Part):
    """The expected cost of an image, and where the figures come from."""

    seconds_per_image: tuple[Seconds, Seconds] = Field(description="Low and high, of one actor.")
    source: str
    bytes_per_image: Positive = 3000

    @model_validator(mode="after")
    def _low_first(self) -> "Cost":
        low, high = self.seconds_per_image
        if low > high:
            raise ValueError(
                f"seconds_per_image is [{low:g}, {high:g}], the first must be the smaller one"
            )
        return self


class GenerateRecipe(Part):
    """A dataset of labelled synthetic faces."""

    kind: Literal["generate"]
    name: Name
    seed: Seed
    system: Name
    licence: Licence
    image: Image
    identities: Identities
    shard: ShardShape
    workers: Workers
    cost: Cost
    weights: NamedWeights = Field(default={}, description="Networks that sample and screen.")
    sampler: Sampler | None = None
    screens: Screens = Screens()
    options: dict[str, Any] = Field(default={}, description="The system's own fields.")

    @model_validator(mode="after")
    def _slots_fit(self) -> "GenerateRecipe":
        if self.shard.slots is not None and self.shard.slots > self.identities.images_each:
            raise ValueError(
                f"shard.slots is {self.shard.slots}, accepted is 1 to identities.images_each "
                f"({self.identities.images_each})"
            )
        return self

    @model_validator(mode="after")
    def _lookalikes_are_seen(self) -> "GenerateRecipe":
        if self.screens.real_lookalike is not None and self.teacher is None:
            raise ValueError("screens.real_lookalike needs weights.teacher, which is missing")
        return self

    @model_validator(mode="after")
    def _torch_never_retries(self) -> "GenerateRecipe":
        screens, torch = self.screens, self.sampler is not None and self.sampler.noise == "torch"
        rejecting = [name for name in SCREENS if getattr(screens, name) is not None]
        if torch and rejecting and screens.max_attempts > 1:
            raise ValueError(
                f"screens.max_attempts is {screens.max_attempts}; with sampler.noise torch and "
                f"screens.{rejecting[0]} it must be 1, since that noise follows from the order of "
                "images, which retries would change"
            )
        return self

    @property
    def teacher(self) -> Weights | None:
        """Return the recognizer that embeds what is made; None where the recipe has none.

        A checkpoint of DCFace holds its own, which counts where `weights.teacher` is left out.
        """
        if "teacher" in self.weights:
            return self.weights["teacher"]
        denoiser = self.weights.get("denoiser")
        inside = denoiser is not None and prefix_of(denoiser.location) in HOLD_TEACHER
        return denoiser if inside and self.identities.source != "noise" else None
