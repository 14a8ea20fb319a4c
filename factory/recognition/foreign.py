"""Recognizers of others: ONNX files, state dicts in their publishers' layouts, insightface's packs.

A reference is `PREFIX:FILE?option=value&option=value`; FILE may be a URL. Options that every prefix
knows: `licence`, of the weights, as the user has it from the publisher; `channels`, the order of
colours the network was trained with. Whatever it is, our interface stays RGB
(`factory.recognition.recognizers`). State dicts are read without running code of the file
(`recognition.tensors`): plain or inside a checkpoint, with `module.`, `_orig_mod.` or the like
before the names. Architecture and size follow from names and shapes (`recognition.layouts`).

onnx:FILE
    See `recognition.onnx_files`.
arcface_torch:FILE
    insightface's arcface_torch: `backbone.pth`, `model.pt`, `checkpoint_gpu_N.pt`, of r18 to r200
    and mbf, and what our trainings write as `model.pt`. `name=r50` asserts one. RGB unless
    `channels` says otherwise.
adaface:FILE?channels=bgr
    AdaFace's IR-18, IR-34, IR-50, IR-101 and the IR-SE networks of the same depths, those of
    ArcFace's first implementations in torch too, or CVLface's, which trains on RGB: `channels` has
    to be said.
magface:FILE
    MagFace's iResNets. They take BGR of 0 to 1, unless `channels` says otherwise, and normalise
    with an epsilon of 2e-5; the length of a raw embedding is the quality of the image.
mobilefacenet:FILE?channels=rgb
    The usual port of MobileFaceNet to torch; `channels` has to be said.
insightface:NAME
    The recognizer of a pack below `~/.insightface/models` (`recognition.packs`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from factory.datasets import catalog
from factory.recipe import InputError
from factory.recognition import layouts
from factory.recognition.backbones import DEPTHS, IResNet
from factory.recognition.layouts import adaface_to_iresnet
from factory.recognition.onnx_files import load_onnx
from factory.recognition.packs import load_insightface
from factory.recognition.recognizer import CHANNELS, Recognizer, file_and_options, torch_recognizer
from factory.recognition.tensors import read_tensors

MAGFACE_EPSILON = 2e-5  # of all its normalisations


class Unsigned(nn.Conv2d):
    """A first convolution over pixels of 0 to 1, which is given them in [-1, 1].

    It moves them before it pads with zeros, so that a padded pixel is black as it was in training.
    What moves them is part of its state: a plain network does not take its weights unawares.

    Args:
        kernels: float [C, 3, 3, 3], of the convolution.
        stride: of the convolution.
    """

    middle: Tensor

    def __init__(self, kernels: Tensor, stride: int) -> None:
        super().__init__(3, len(kernels), 3, stride, padding=1, bias=False)
        self.weight = nn.Parameter(kernels)
        self.register_buffer("middle", torch.tensor(0.5))

    def forward(self, input: Tensor) -> Tensor:
        """Return the map."""
        return super().forward(input * self.middle + self.middle)


def load_arcface_torch(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load a state dict of arcface_torch or of a training of ours; InputError where it is none."""
    return _loaded(
        "arcface_torch",
        lambda found, name: layouts.arcface_torch(found, reference, name),
        (reference, dtype, device),
        name=(*DEPTHS, "mbf"),
    )


def load_adaface(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load AdaFace weights; InputError without `channels`, or where they are no IR network's."""
    return _loaded(
        "adaface",
        lambda found, _: layouts.iresnet(*adaface_to_iresnet(found, reference), reference),
        (reference, dtype, device),
        stated="adaface:FILE?channels=bgr (weights published with AdaFace) or channels=rgb "
        "(CVLface)",
    )


def load_magface(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load MagFace's weights; InputError where they are no iResNet's."""

    def build(found: layouts.State, name: str) -> tuple[nn.Module, int]:
        weights = layouts.magface_to_iresnet(found)
        network, size = layouts.arcface_torch(weights, reference, name)
        if not isinstance(network, IResNet):
            raise InputError(
                f"recognizer {reference!r}: a {type(network).__name__}; accepted are MagFace's "
                "iResNets"
            )
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.eps = MAGFACE_EPSILON
        network.conv1 = Unsigned(network.conv1.weight.detach(), network.conv1.stride[0])
        return network, size

    return _loaded("magface", build, (reference, dtype, device), channels="bgr", name=tuple(DEPTHS))


def load_mobilefacenet(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load MobileFaceNet of the usual port; InputError without `channels`, or of other names."""
    return _loaded(
        "mobilefacenet",
        lambda found, _: layouts.mobilefacenet(found, reference),
        (reference, dtype, device),
        stated="mobilefacenet:FILE?channels=rgb or channels=bgr, as it was trained",
    )


def _loaded(
    prefix: str,
    build: Callable[[layouts.State, str], tuple[nn.Module, int]],
    asked: tuple[str, str, torch.device | str],
    channels: str = "rgb",
    stated: str = "",
    name: tuple[str, ...] = (),
) -> Recognizer:
    """Load a state dict.

    Args:
        prefix: of the reference.
        build: makes the network and its image size of the tensors and of the name asserted.
        asked: reference, type and device.
        channels: what the network takes where the reference does not say.
        stated: what is accepted where the reference has to say it; empty where it need not.
        name: names that `name` may assert.
    """
    reference, dtype, device = asked
    named = {"name": name} if name else {}
    path, options = file_and_options(reference, **named, channels=CHANNELS)
    if stated and "channels" not in options:
        raise InputError(f"recognizer {reference!r}: channels missing; accepted: {stated}")
    what = f"recognizer {reference!r} (read without running code)"
    found = layouts.unwrapped(read_tensors(path, what))
    if theirs := layouts.another(found, prefix):
        raise InputError(f"recognizer {reference!r}: {theirs}")
    network, size = build(found, options.get("name", ""))
    if options.get("channels", channels) == "bgr":
        _turn_round(network)
    licence = catalog.licence_of(path, options.get("licence", ""))
    return torch_recognizer(network, path.stem, size, path, licence, reference, dtype, device)


def _turn_round(network: nn.Module) -> None:
    """Let a network of BGR take RGB: its first convolution is turned round."""
    first = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))


LOADERS: dict[str, Callable[[str, str, Any], Recognizer]] = {
    "adaface": load_adaface,
    "arcface_torch": load_arcface_torch,
    "insightface": load_insightface,
    "magface": load_magface,
    "mobilefacenet": load_mobilefacenet,
    "onnx": load_onnx,
}
