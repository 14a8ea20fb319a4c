"""Feature networks: they embed two sets of images whose distributions are compared.

Any recognizer works. Its embeddings tell people apart and little else: images of one person are
close together, so that a set of other people covers almost nothing. An earlier layer of the same
network (`REFERENCE#layer2`, averaged over places) describes the picture. An ImageNet network, as
DCFace and FID use, is accepted as TorchScript, which runs in TorchScript's own interpreter without
Python code and without pickle.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.datasets.located import local_file
from factory.datasets.provenance import sha256_file
from factory.datasets.store import Store
from factory.evaluation.dataset import image_batches
from factory.recipe import InputError, with_options
from factory.recognition.images import normalized

if TYPE_CHECKING:
    from factory.recognition.recognizer import Recognizer

RANGES = ("signed", "unit", "imagenet", "bytes")
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ACCEPTED = (
    "a recognizer, a recognizer#LAYER, or torchscript:FILE?size=S&range=signed|unit|imagenet|bytes "
    "with an optional argument=NAME that is passed as true"
)
BATCH = 64
WITHOUT_LAYERS = ("onnx", "insightface")  # onnxruntime runs these and gives no access to layers


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that turns images into features.

    Attributes:
        name: its name in tables.
        size: height and width of its images.
        sha256: sha256 of its file.
        licence: licence of its weights; "unknown" if it is not stated.
        location: the reference that it was loaded from.
        scaled: whether its features are scaled to unit length, as a recognizer's are.
    """

    name: str
    size: int
    sha256: str
    licence: str
    location: str
    scaled: bool
    _extract: Callable[[np.ndarray], np.ndarray] = field(repr=False)

    def extract(self, images: np.ndarray) -> np.ndarray:
        """Return features, float64 [B, D], of uint8 [B, S, S, 3] RGB images.

        Raises:
            InputError: a feature is not a number.
        """
        found = self._extract(images).astype(np.float64)
        if found.ndim != 2 or not np.isfinite(found).all():
            raise InputError(
                f"feature network {self.name}: it gives {list(found.shape)} or what is not a "
                "number; accepted is [B, D], finite"
            )
        return normalized(found) if self.scaled else found

    def as_dict(self) -> dict[str, Any]:
        """Return the facts that identify the network, JSON-able."""
        names = ("name", "size", "sha256", "licence", "location", "scaled")
        return {name: getattr(self, name) for name in names}


def load_features(reference: str) -> FeatureNetwork:
    """Load the feature network that a reference names.

    Args:
        reference: one of three forms. A reference of `load_recognizer`. Such a reference (but not
            onnx: or insightface:) with `#LAYER`, the name of a module whose output [B, C, H, W] is
            averaged over H and W. Or `torchscript:FILE?size=S&range=R`, a scripted network to
            [B, D] from float [B, 3, S, S] (`signed`: [-1, 1], `unit`: [0, 1], `imagenet`: scaled by
            ImageNet's mean and deviation) or from uint8 (`bytes`); `argument=return_features`
            passes return_features=True, as some FID networks need.

    Raises:
        InputError: the form is unknown, there is no such file or layer, or it is not a network.
    """
    prefix, colon, rest = reference.partition(":")
    if colon and prefix == "torchscript":
        return _scripted(rest, reference)
    from factory.recognition.recognizers import load_recognizer

    plain, _, layer = reference.partition("#")
    if layer and colon and prefix in WITHOUT_LAYERS:
        raise InputError(
            f"--features {reference!r}: no layer of {prefix}: can be reached; accepted is "
            f"{plain!r}, or a layer of another recognizer"
        )
    found = load_recognizer(plain)
    if layer:
        return _layer(found, layer, reference)
    return FeatureNetwork(
        found.name, found.size, found.sha256, found.licence, reference, True, found.embed
    )


def extract_dataset(
    store: Store,
    network: FeatureNetwork,
    identities: int | None = None,
    images_each: int | None = None,
    resize: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return features, float64 [N, D], and labels, int64 [N], of a dataset's samples in order.

    Images are streamed; the features of the whole selection are in memory.

    Raises:
        InputError: as `image_batches`.
    """
    labels: list[int] = []
    parts: list[np.ndarray] = []
    some = (identities, images_each, resize)
    for found, images in image_batches(store, network.size, BATCH, *some):
        labels += [sample.label for sample in found]
        parts.append(network.extract(images))
    return np.concatenate(parts), np.array(labels, dtype=np.int64)


def _layer(recognizer: "Recognizer", layer: str, reference: str) -> FeatureNetwork:
    modules = dict(recognizer.module.named_modules())
    if layer not in modules:
        known = ", ".join(name for name in modules if name and "." not in name)
        raise InputError(f"--features {reference!r}: no layer {layer}; accepted: {known or 'none'}")
    seen: list[np.ndarray] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        pooled = output.flatten(2).mean(2) if output.ndim > 2 else output
        seen.append(pooled.float().cpu().numpy())

    modules[layer].register_forward_hook(keep)

    def extract(images: np.ndarray) -> np.ndarray:
        seen.clear()
        recognizer.embed(images)
        return np.concatenate(seen)

    return FeatureNetwork(
        f"{recognizer.name}#{layer}", recognizer.size, recognizer.sha256, recognizer.licence,
        reference, False, extract,
    )  # fmt: skip


def _scripted(rest: str, reference: str) -> FeatureNetwork:
    import torch

    file, options = with_options(rest)
    size, scale, argument = options.get("size", ""), options.get("range"), options.get("argument")
    if set(options) - {"size", "range", "argument"} or scale not in RANGES or not size.isdecimal():
        raise InputError(f"--features {reference!r}; accepted: {ACCEPTED}")
    path = local_file(file, f"--features {reference!r}", f"accepted: {ACCEPTED}")
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--features {reference!r}: not TorchScript: {reason}") from None
    keywords = {argument: True} if argument else {}
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    deviation = torch.tensor(IMAGENET_SD).view(1, 3, 1, 1)

    @torch.inference_mode()
    def extract(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        if scale != "bytes":
            batch = batch.float() / 255.0
        if scale == "signed":
            batch = batch * 2.0 - 1.0
        if scale == "imagenet":
            batch = (batch - mean) / deviation
        return module(batch, **keywords).flatten(1).float().numpy()

    return FeatureNetwork(
        path.stem, int(size), sha256_file(path), "unknown", reference, False, extract
    )
