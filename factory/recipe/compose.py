"""Recipes of kind `compose`: a view over finished datasets, which are its pools."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from factory.recipe.addresses import Address
from factory.recipe.parts import NUMBER, Cosine, Name, Part, Positive, Seed, Weights


class PoolView(Part):
    """What a composition takes of one pool, a finished dataset."""

    url: Address = Field(description="Folder or URL, without credentials.")
    content_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = Field(
        default="", description="When given, the pool's own must equal it."
    )
    identities: Positive | None = Field(
        default=None, description="The first N that qualify, in label order; default: all."
    )
    images_each: Positive | None = Field(
        default=None, description="At most N of each identity; default: all, or as the budget says."
    )
    least_images: Positive = Field(
        default=1, description="An identity needs this many images in the band to qualify."
    )
    draw: Literal["first", "random"] = Field(
        default="first", description="Take images in key order, or in an order drawn by the seed."
    )
    centre_band: tuple[Cosine, Cosine] | None = Field(
        default=None, description="Cosine to the centre: low <= cosine < high; no limit if high=1."
    )
    weight: Annotated[float, NUMBER, Field(ge=0.0)] = Field(
        default=1.0, description="Share of the image budget, relative to the other pools'."
    )
    repeat: Annotated[Positive, Field(le=10_000)] = Field(
        default=1, description="How often an epoch holds each taken image."
    )
    identities_of: str = Field(
        default="", description="Another pool of the same people; equal identities share a label."
    )
    real: bool = Field(default=False, description="The pool holds photographs of real people.")

    @model_validator(mode="after")
    def _fits(self) -> "PoolView":
        if self.centre_band is not None and not self.centre_band[0] < self.centre_band[1]:
            raise ValueError(
                f"centre_band is {list(self.centre_band)}, the first must be the smaller one"
            )
        if self.identities_of and self.identities is not None:
            raise ValueError(
                f"identities is {self.identities}; with identities_of it is to be left out"
            )
        return self


class ComposeRecipe(Part):
    """A composition: a view over pools, from which a recognizer is trained."""

    kind: Literal["compose"]
    name: Name
    seed: Seed
    pools: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)], PoolView],
        Field(min_length=1),
    ]
    images: Positive | None = Field(
        default=None, description="Images of an epoch, repeats counted; default: all of all pools."
    )
    recognizer: Weights | None = Field(
        default=None, description="The recognizer under which `centre_band` is measured."
    )
    shard_images: Positive = Field(default=5000, description="Images of a shard if materialised.")

    @model_validator(mode="after")
    def _pools_fit(self) -> "ComposeRecipe":
        for name, view in self.pools.items():
            if view.centre_band is not None and self.recognizer is None:
                raise ValueError(f"recognizer is missing; pools.{name}.centre_band needs one")
            if view.weight != 1.0 and self.images is None:
                raise ValueError(f"images is missing; pools.{name}.weight shares out a budget")
            other = view.identities_of
            if other and (other == name or other not in self.pools):
                raise ValueError(
                    f"pools.{name}.identities_of is {other!r}; it must name another pool"
                )
            if other and self.pools[other].identities_of:
                raise ValueError(
                    f"pools.{name}.identities_of is {other!r}, which has identities_of itself; "
                    f"accepted is {self.pools[other].identities_of!r}"
                )
            if other and view.weight and not self.pools[other].weight:
                raise ValueError(f"pools.{name}.identities_of is {other!r}, whose weight is 0")
        if not any(view.weight for view in self.pools.values()):
            raise ValueError("pools: every weight is 0; accepted is one or more above 0")
        return self
