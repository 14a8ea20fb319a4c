"""Recognizers inside the checkpoints of generators: DCFace's teacher and its identity encoder.

Both are AdaFace's IR-50. They take RGB there too and turn it round themselves; here their first
convolution is turned round instead.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from factory.datasets import catalog
from factory.datasets.located import local_file
from factory.recipe import InputError, with_options
from factory.recognition.backbones import REDUCTION, WIDTHS, IResNet
from factory.recognition.foreign import adaface_to_iresnet
from factory.recognition.recognizer import Recognizer, filled, torch_recognizer
from factory.recognition.tensors import read_tensors

TEACHER = "recognition_model.backbone."
ACCEPTED = "accepted is dcface:FILE, a checkpoint of DCFace's stage 2"


def iresnet_inside(
    found: Mapping[str, Tensor], prefix: str, where: str, accepted: str = ACCEPTED
) -> tuple[dict[str, Tensor], tuple[int, ...], int]:
    """Return a recognizer of a checkpoint, for RGB images in [-1, 1].

    Args:
        found: the checkpoint's tensors.
        prefix: before the names of the recognizer's.
        where: begins errors: the field and the file.
        accepted: ends them.

    Returns:
        Tensors under the names of `IResNet`, how many units its four layers have, height and width
        of its images.

    Raises:
        InputError: there is none, or not one of AdaFace's networks.
    """
    inside = {
        name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)
    }
    if not inside:
        raise InputError(f"{where} has no recognizer inside ({prefix}*); {accepted}")
    weights, depths = adaface_to_iresnet(inside, f"{where}: {prefix}*")
    for needed in ("conv1.weight", "bn2.weight", "fc.weight", "features.running_mean"):
        if needed not in weights:
            raise InputError(f"{where}: {prefix}* lacks what is {needed} here; {accepted}")
    weights["conv1.weight"] = weights["conv1.weight"].flip(1)
    cells = weights["fc.weight"].shape[1] // weights["bn2.weight"].numel()
    return weights, depths, REDUCTION * math.isqrt(cells)


def load_dcface(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load the teacher inside of a checkpoint of DCFace, `dcface:FILE`.

    Args:
        reference: the location; `licence=NAME` is its only option.
        dtype: float32, or bfloat16 for autocast.
        device: where it runs.

    Raises:
        InputError: no such file, or one without a teacher inside.
    """
    what = f"recognizer {reference!r}"
    options = with_options(reference.partition(":")[2])[1]
    path = local_file(reference, what, ACCEPTED)
    found = read_tensors(path, what, accepted=ACCEPTED)
    weights, depths, size = iresnet_inside(found, TEACHER, what)
    dimension = weights["fc.weight"].shape[0]
    network = filled(IResNet(depths, WIDTHS, size, dimension), weights, reference)
    licence = catalog.licence_of(path, options.get("licence", ""))
    return torch_recognizer(network, path.stem, size, path, licence, reference, dtype, device)
