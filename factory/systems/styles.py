"""Style banks: pictures of a dataset or of the studio that decide how an image looks."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from factory.datasets.images import ImageBank
from factory.recipe import NamedDataset, Part, Positive
from factory.recognition.attributes import Predictor
from factory.studio.people import person
from factory.studio.render import render
from factory.studio.views import attributes, draw_view


class StylesOptions(Part):
    """The source of styles, and how the style of an image is chosen."""

    dataset: NamedDataset | None = Field(
        default=None, description="Images of a dataset; default: the studio's train people."
    )
    people: Positive = Field(default=8000, description="So many of the studio's train people.")
    draw: Literal["random", "matched", "similar", "listed"] = Field(
        default="random",
        description="The first drawn; the one whose attributes differ least from the identity "
        "image's; the one whose face is nearest to it under the teacher; or, drawn from none, the "
        "n-th image of the dataset for the n-th of every identity.",
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


def grouped(
    predictor: Predictor,
    groups: Mapping[str, Sequence[float]],
    images: Sequence[np.ndarray],
    truths: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """Return the group of each image by each attribute: the truth, or else as predicted.

    Args:
        predictor: reads attributes.
        groups: attributes, and where their range is cut.
        images: uint8 [S, S, 3] each.
        truths: what is known of each image.

    Returns:
        int64 [images, attributes], counted from 0 in each.
    """
    read = predictor.predict(np.stack(images))
    found = [
        np.searchsorted(cuts, [truth.get(name, read[name][n]) for n, truth in enumerate(truths)])
        for name, cuts in groups.items()
    ]
    return np.stack(found, axis=1)


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

    def listed(self, slot: int) -> Style:
        """Return the image of a slot, in key order and from the first again after the last."""
        return Style(slot % len(self.images), 0)

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
