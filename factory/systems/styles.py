"""Style banks: pictures of a dataset or of the studio that decide how an image looks."""

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from factory.datasets.images import ImageBank
from factory.recipe import NamedDataset, Part, Positive
from factory.studio.people import person
from factory.studio.render import render
from factory.studio.views import attributes, draw_view


class StylesOptions(Part):
    """The source of styles, and how the style of an image is chosen."""

    dataset: NamedDataset | None = Field(
        default=None, description="Images of a dataset; default: the studio's train people."
    )
    people: Positive = Field(default=8000, description="Number of the studio's train people.")
    draw: Literal["random", "matched", "similar"] = Field(
        default="random",
        description="random: any style; of some candidates, matched: the one whose attributes "
        "differ least from the identity image's; similar: the one nearest under the teacher.",
    )
    candidates: Positive = Field(default=16, description="Number of candidates to choose from.")
    groups: dict[str, tuple[float, ...]] = Field(
        default={"gender": (0.5,), "skin_luminance": (0.12, 0.3)},
        description="For matched: attributes, and the values that cut their range into groups.",
    )


class Style(NamedTuple):
    """A style: the number of its picture or person and, in the studio, the seed of its view."""

    number: int
    view: int


class StyleBank(Protocol):
    """A set of styles to draw from."""

    def draw(self, draws: np.random.Generator) -> Style:
        """Draw a style."""
        ...

    def image(self, style: Style) -> np.ndarray:
        """Return the style's picture, uint8 [S, S, 3] RGB."""
        ...

    def truth(self, style: Style) -> dict[str, Any]:
        """Return the known attributes of the picture."""
        ...

    def key(self, style: Style) -> str:
        """Return the style's name, for sidecars."""
        ...


class DatasetStyles:
    """Styles that are the images of a dataset."""

    def __init__(self, images: ImageBank) -> None:
        """Keep the images."""
        self.images = images

    def draw(self, draws: np.random.Generator) -> Style:
        """Draw one of all images."""
        return Style(int(draws.integers(len(self.images))), 0)

    def image(self, style: Style) -> np.ndarray:
        """Return the image."""
        return self.images.image(style.number)

    def truth(self, style: Style) -> dict[str, Any]:
        """Return the truth from the image's sidecar."""
        return self.images.sidecar(style.number).get("truth", {})

    def key(self, style: Style) -> str:
        """Return the key of the image."""
        return self.images.key(style.number)


class StudioStyles:
    """Styles that are pictures of the studio's train people, rendered when needed."""

    def __init__(self, people: int, size: int) -> None:
        """Keep the number of people, and the height and width of a picture in pixels."""
        self.people, self.size = people, size

    def draw(self, draws: np.random.Generator) -> Style:
        """Draw a person and a view."""
        return Style(int(draws.integers(self.people)), int(draws.integers(2**63)))

    def image(self, style: Style) -> np.ndarray:
        """Render the view of the person."""
        return render(person("train", style.number), draw_view(style.view), self.size)

    def truth(self, style: Style) -> dict[str, Any]:
        """Return the attributes of the person and the view."""
        return dict(attributes(person("train", style.number), draw_view(style.view)))

    def key(self, style: Style) -> str:
        """Return set, number and view."""
        return f"studio-train-{style.number}-{style.view:016x}"
