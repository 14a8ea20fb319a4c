"""Attributes read from faces: pose, light, age and other facts that the studio knows.

The shipped predictor is a small network that learned the studio's truth (the command
train_attributes). Its file states its errors on people that it did not see in training. Other
predictors are ONNX models with named outputs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from factory.datasets.located import local_file
from factory.datasets.provenance import sha256_file
from factory.recipe import InputError, with_options
from factory.recognition.backbones import channels_last
from factory.recognition.recognizer import to_input
from factory.recognition.recognizers import load_recognizer, read_own

FORMAT = "face-data-factory/attributes"
FILE = "attributes.safetensors"
SHIPPED = f"package:weights/attributes/{FILE}"
BATCH = 256
BINS = 24
ACCEPTED = "a .safetensors file of train_attributes, its folder, onnx:FILE?names=A,B"


@dataclass(frozen=True)
class Attribute:
    """The meaning of an attribute.

    Attributes:
        unit: its unit and sign, in words.
        low: lower end of its histogram; lower values count in the first bin.
        high: upper end of its histogram; higher values count in the last bin.
        mirrored: -1 if the value changes its sign in a mirror, else 1.
    """

    unit: str
    low: float
    high: float
    mirrored: int = 1

    @property
    def edges(self) -> np.ndarray:
        """Return the edges of the histogram's bins, float64 [BINS + 1]."""
        return np.linspace(self.low, self.high, BINS + 1)

    def histogram(self, values: np.ndarray) -> list[int]:
        """Count values in `BINS` equal bins; values outside count in the nearest bin."""
        return np.histogram(np.clip(values, self.low, self.high), self.edges)[0].tolist()


STUDIO = {
    "yaw": Attribute("degrees, positive turns the nose to the picture's right", -80, 80, -1),
    "pitch": Attribute("degrees, positive looks up", -32, 32),
    "roll": Attribute("degrees before alignment, positive counter-clockwise", -24, 24, -1),
    "light_azimuth": Attribute("degrees from the camera, positive from the right", -120, 120, -1),
    "light_elevation": Attribute("degrees, positive from above", -24, 84),
    "hardness": Attribute("share: 0 even light, 1 one hard lamp", 0, 1),
    "exposure": Attribute("factor on the light", 0.6, 3.0),
    "age": Attribute("years", 16, 88),
    "gender": Attribute("share: 0 female, 1 male", 0, 1),
    "skin_luminance": Attribute("share of white", 0, 1),
    "smile": Attribute("share of a full smile", 0, 1),
    "mouth_open": Attribute("share of a fully open jaw", 0, 0.6),
    "glasses": Attribute("share: 0 none, 1 worn", 0, 1),
}


class AttributeNet(nn.Module):
    """A small convolutional network from images to attributes.

    It maps float32 [B, 3, S, S] in [-1, 1], S a multiple of 16, to float32 [B, K] in standard
    deviations from the training mean; `predict` turns these into units.
    """

    def __init__(self, size: int, outputs: int, widths: Sequence[int] = (24, 48, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for width in widths:
            layers += [nn.Conv2d(inside, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width),
                       nn.ReLU(inplace=True)]  # fmt: skip
            inside = width
        layers[9:9] = [nn.Conv2d(widths[2], widths[2], 3, 1, 1, bias=False),
                       nn.BatchNorm2d(widths[2]), nn.ReLU(inplace=True)]  # fmt: skip
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inside * (size // 16) ** 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised attributes."""
        return self.head(self.features(x).flatten(1))


@dataclass
class Predictor:
    """Reads attributes from faces.

    Attributes:
        name: its name in tables.
        size: height and width of its images in pixels.
        attributes: the meaning of each name, in the order of the outputs.
        sha256: sha256 of its file.
        licence: licence of its weights; "unknown" if the file does not say.
        error: mean absolute error of each attribute on people that it did not see in training, in
            the attribute's unit; empty if it was not measured.
        error_of_the_median: the same error of a constant answer, the training median.
        reference: histograms of its predictions on those people, to compare a dataset with.
    """

    name: str
    size: int
    attributes: dict[str, Attribute]
    sha256: str
    licence: str
    error: dict[str, float]
    error_of_the_median: dict[str, float]
    reference: dict[str, list[int]]
    _predict: Callable[[np.ndarray], np.ndarray] = field(repr=False)

    @property
    def unread(self) -> tuple[str, ...]:
        """Return the attributes that it reads no better than a constant answer, the median."""
        return tuple(
            name
            for name, base in self.error_of_the_median.items()
            if self.error.get(name, 0.0) >= base
        )

    def predict(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return each attribute of each image, float32 [N], in the unit of `attributes`.

        Args:
            images: uint8 [N, S, S, 3], RGB, aligned as the studio's faces are. Images of another
                size than the network's are resized bilinearly, with antialiasing.

        Raises:
            InputError: the images have another shape or type.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise InputError(
                f"attributes {self.name}: images are {images.dtype} {list(images.shape)}, "
                "accepted are uint8 [N, S, S, 3]"
            )
        parts = [self._predict(images[n : n + BATCH]) for n in range(0, len(images), BATCH)]
        values = np.concatenate(parts) if parts else np.empty((0, len(self.attributes)))
        return {
            name: np.ascontiguousarray(values[:, column], np.float32)
            for column, name in enumerate(self.attributes)
        }


def save_predictor(
    path: Any, net: AttributeNet, size: int, mean: np.ndarray, scale: np.ndarray, **facts: Any
) -> None:
    """Write a predictor of the studio's attributes to a .safetensors file.

    Args:
        path: the file.
        net: the trained network.
        size: height and width S of its images.
        mean: training mean of each attribute, float [K].
        scale: training standard deviation of each attribute, float [K].
        facts: `error`, `reference`, `licence` and facts about its training; stored as JSON.
    """
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    weights["mean"] = torch.as_tensor(mean, dtype=torch.float32)
    weights["scale"] = torch.as_tensor(scale, dtype=torch.float32)
    config = {"size": size, "names": list(STUDIO), **facts}
    save_file(weights, path, {"format": FORMAT, "config": json.dumps(config, sort_keys=True)})


def load_predictor(reference: str = SHIPPED, device: torch.device | str = "cpu") -> Predictor:
    """Load the predictor that a reference names.

    Args:
        reference: a `.safetensors` file of `save_predictor` or its folder (`package:` for the
            shipped one), or `onnx:FILE?names=A,B`: a model [B, 3, S, S] in [-1, 1] to [B, K] with
            the names of its K outputs. A name may state its range, as in `age:0:100`. Folders and
            files may be URLs, which are fetched to the cache.
        device: the device of a torch network.

    Raises:
        InputError: there is no such file, or it is not a predictor.
    """
    prefix, colon, rest = reference.partition(":")
    if colon and prefix == "onnx":
        return _load_onnx(reference, rest)
    path = local_file(reference, f"attributes {reference!r}", f"accepted: {ACCEPTED}", FILE)
    if path.suffix != ".safetensors":
        raise InputError(f"attributes {reference!r}: {path.name}; accepted: {ACCEPTED}")
    weights, metadata = read_own(path, FORMAT, f"attributes {reference!r}")
    config = json.loads(metadata["config"])
    attributes = {name: STUDIO[name] for name in config["names"]}
    mean, scale = weights.pop("mean").to(device), weights.pop("scale").to(device)
    size = config["size"]
    net = AttributeNet(size, len(attributes))
    net.load_state_dict(weights)
    channels_last(net.eval().requires_grad_(False)).to(device)

    @torch.inference_mode()
    def predict(images: np.ndarray) -> np.ndarray:
        batch = resized(to_input(torch.from_numpy(images).to(device)), size)
        return (net(batch) * scale + mean).float().cpu().numpy()

    return Predictor(
        path.parent.name, size, attributes, sha256_file(path), config.get("licence", "unknown"),
        config.get("error", {}), config.get("error_of_the_median", {}),
        config.get("reference", {}), predict,
    )  # fmt: skip


def resized(batch: Tensor, size: int) -> Tensor:
    """Return float [B, 3, S, S] as [B, 3, size, size], bilinear with antialiasing."""
    if batch.shape[2:] == (size, size):
        return batch
    return functional.interpolate(
        batch, (size, size), mode="bilinear", antialias=True, align_corners=False
    )


def _load_onnx(reference: str, rest: str) -> Predictor:
    file, options = with_options(rest)
    if set(options) != {"names"}:
        raise InputError(f"attributes {reference!r}: accepted is onnx:FILE?names=A,B")
    attributes = dict(_named(text, reference) for text in options["names"].split(","))
    model = load_recognizer(f"onnx:{file}")
    if model.dimension != len(attributes):
        raise InputError(
            f"attributes {reference!r}: {len(attributes)} names for {model.dimension} outputs; "
            "accepted is one for each"
        )

    def predict(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(images)
        if images.shape[1:3] != (model.size, model.size):
            scaled = resized(batch.permute(0, 3, 1, 2).float(), model.size)
            batch = scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return model.embed(np.ascontiguousarray(batch.numpy()))

    return Predictor(
        model.name, model.size, attributes, model.sha256, model.licence, {}, {}, {}, predict
    )


def _named(text: str, reference: str) -> tuple[str, Attribute]:
    name, *ends = text.split(":")
    try:
        low, high = (float(end) for end in ends) if ends else (0.0, 1.0)
    except ValueError:
        low = high = 0.0
    if not name or not low < high:
        raise InputError(f"attributes {reference!r}: {text!r}; accepted is NAME or NAME:LOW:HIGH")
    return name, Attribute("as its model states", low, high)
