"""State dicts of others under the names of our networks: which layout it is, and what goes where.

Each function takes tensors by their publisher's names and returns them by ours; no file is read
here. What the layouts have in common is their mathematics, so most become an `IResNet`, whose
stages others look into.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from factory.recipe import InputError
from factory.recognition.backbones import (
    DEPTHS,
    IRSE50,
    REDUCTION,
    WIDTHS,
    IResNet,
    MobileFaceNet,
)
from factory.recognition.recognizer import filled

State = dict[str, Tensor]

WRAPPERS = ("model.", "net.", "module.", "_orig_mod.", "backbone.")  # by what holds a network
MAGFACE = ("features.module.", "features.")  # before every name of MagFace's
PIECES = 17  # of MobileFaceNet's body before its last convolution
ADAFACE_PARTS = {  # AdaFace's place in a residual block -> ours
    "res_layer.0": "bn1",
    "res_layer.1": "conv1",
    "res_layer.2": "bn2",
    "res_layer.3": "prelu",
    "res_layer.4": "conv2",
    "res_layer.5": "bn3",
    "res_layer.6": "squeeze",
    "res_layer.se_block": "squeeze",
    "shortcut_layer.0": "downsample.0",
    "shortcut_layer.1": "downsample.1",
}
OLDER_PARTS = {  # the place in a block of one normalisation less, of ArcFace's first networks
    "res_layer.0": "bn1",
    "res_layer.1": "conv1",
    "res_layer.2": "prelu",
    "res_layer.3": "conv2",
    "res_layer.4": "bn3",
    "res_layer.5": "squeeze",
    "shortcut_layer.0": "downsample.0",
    "shortcut_layer.1": "downsample.1",
}
ADAFACE_ENDS = {
    "input_layer.0": "conv1",
    "input_layer.1": "bn1",
    "input_layer.2": "prelu",
    "output_layer.0": "bn2",
    "output_layer.3": "fc",
    "output_layer.4": "features",
}
MBF_PARTS = {"0": "expand", "1": "depthwise", "2": "project"}
PORT_PARTS = {"conv": "expand", "conv_dw": "depthwise", "project": "project"}
PORT_LAYERS = {"conv": "0", "bn": "1", "prelu": "2"}
PORT_ENDS = {
    "conv1": "body.0",
    "conv2_dw": "body.1",
    "conv_6_sep": f"body.{PIECES}",
    "conv_6_dw": "global_depthwise",
}
PORT_PLACES = {  # of its bottlenecks
    "conv_23": 2,
    **{f"conv_3.model.{n}": 3 + n for n in range(4)},
    "conv_34": 7,
    **{f"conv_4.model.{n}": 8 + n for n in range(6)},
    "conv_45": 14,
    **{f"conv_5.model.{n}": 15 + n for n in range(2)},
}
MBF_PLACES = {
    "layers.2": 2,
    **{f"layers.3.layers.{n}": 3 + n for n in range(4)},
    "layers.4": 7,
    **{f"layers.5.layers.{n}": 8 + n for n in range(6)},
    "layers.6": 14,
    **{f"layers.7.layers.{n}": 15 + n for n in range(2)},
}
MARKS = {  # a name that only this layout has -> what it is, and how it is asked for
    "features.module.conv1.weight": ("MagFace's", "magface:FILE"),
    "features.conv1.weight": ("MagFace's", "magface:FILE"),
    "input_layer.0.weight": ("an IR network's, as AdaFace's", "adaface:FILE?channels=bgr"),
    "conv2_dw.conv.weight": ("MobileFaceNet's", "mobilefacenet:FILE?channels=rgb"),
    "layers.0.layers.0.weight": ("arcface_torch's mbf", "arcface_torch:FILE"),
    "layer1.0.conv1.weight": ("arcface_torch's", "arcface_torch:FILE"),
    "stem.0.weight": ("those of our IR-SE50", "arcface_torch:FILE"),
    "global_depthwise.0.weight": ("those of our MobileFaceNet", "arcface_torch:FILE"),
}


def unwrapped(found: Mapping[str, Tensor]) -> State:
    """Return tensors without what training frameworks and compilers put before every name."""
    while wrapper := next((w for w in WRAPPERS if any(name.startswith(w) for name in found)), ""):
        found = {
            name.removeprefix(wrapper): value
            for name, value in found.items()
            if name.startswith(wrapper)
        }
    return dict(found)


def another(found: Iterable[str], prefix: str) -> str:
    """Say whose names these are and how to load them, where another prefix does; else nothing."""
    names = set(found)
    for mark, (whose, how) in MARKS.items():
        plain = prefix == "magface" and mark.startswith("layer1.")  # once they are unwrapped
        if mark in names and not (plain or how.startswith(f"{prefix}:")):
            return f"its names are {whose}; accepted is {how}"
    return ""


def arcface_torch(found: State, reference: str, name: str = "") -> tuple[nn.Module, int]:
    """Return the network of arcface_torch's names, or of a training of ours, and its image size.

    Args:
        found: tensors by name.
        reference: what the user asked for, for errors.
        name: the network it must be; empty where any will do.

    Raises:
        InputError: the names or shapes are no such network's.
    """
    if "layers.0.layers.0.weight" in found:
        _asserted(name, "mbf", reference)
        return _mobile(mbf_to_mobilefacenet(found, reference), True, reference)
    if "global_depthwise.0.weight" in found:
        _asserted(name, "mobilefacenet", reference)
        return _mobile(found, False, reference)
    if "stem.0.weight" in found:
        _asserted(name, "ir_se50", reference)
        dimension, flat = _sides(found, "linear.weight", reference)
        size = _size(flat, WIDTHS[-1])
        return filled(IRSE50(size, dimension), found, reference), size
    if "fc.weight" not in found:
        raise InputError(
            f"recognizer {reference!r}: not an arcface_torch state dict (no fc.weight; it holds "
            f"{', '.join(list(found)[:3])} ...); accepted: {', '.join(DEPTHS)}, mbf"
        )
    depths = tuple(
        len({key.split(".")[1] for key in found if key.startswith(f"layer{n}.")})
        for n in range(1, 5)
    )
    known = next((known for known, layers in DEPTHS.items() if layers == depths), "")
    small = "conv1.weight" in found and "prelu.weight" not in found  # our iresnet, of any depths
    if not (known or small) or name not in ("", known):
        raise InputError(
            f"recognizer {reference!r}: depths {list(depths)} are not those of "
            f"{name or 'a known network'}; accepted: {', '.join(DEPTHS)}, mbf"
        )
    return iresnet(found, depths, reference, small)


def iresnet(
    weights: State, depths: tuple[int, ...], reference: str, small: bool = False
) -> tuple[IResNet, int]:
    """Return the network that state dict is of, and its image size; InputError where it fits none.

    Args:
        weights: tensors under the names of `IResNet`.
        depths: units of each of its four layers.
        reference: what the user asked for, for errors.
        small: whether it is our `iresnet`.
    """
    dimension, flat = _sides(weights, "fc.weight", reference)
    try:
        width = weights["bn2.weight"].numel()
        widths = [weights[f"layer{n}.0.conv2.weight"].shape[0] for n in range(1, 5)]
    except KeyError as error:
        raise InputError(
            f"recognizer {reference!r}: weights do not fit: {error.args[0]} is missing"
        ) from error
    size, squeeze = _size(flat, width), "layer1.0.squeeze.fc1.weight" in weights
    network = IResNet(depths, widths, size, dimension, small=small, squeeze=squeeze)
    filled(network, weights, reference)
    return network, size


def adaface_to_iresnet(
    found: Mapping[str, Tensor], reference: str
) -> tuple[State, tuple[int, ...]]:
    """Return an IR network's weights under the names of `IResNet`, and the units of its layers.

    AdaFace's IR and IR-SE networks are the same but for two things. Where the first unit of a layer
    halves the map and keeps its width, AdaFace's shortcut takes every second pixel; here that is a
    convolution by the unit matrix. The last normalisation has no scale and shift there; here they
    are one and zero. ArcFace's first networks of these names, whose units have one normalisation
    less, get one that changes nothing.

    Raises:
        InputError: the names or shapes are not those of an IR or IR-SE network.
    """
    body = {int(name.split(".")[1]) for name in found if name.startswith("body.")}
    kernel = found.get("body.0.res_layer.3.weight")
    older = kernel is not None and kernel.ndim == 4
    parts, last = (OLDER_PARTS, 3) if older else (ADAFACE_PARTS, 4)
    widths = []
    for unit in range(len(body)):
        kernel = found.get(f"body.{unit}.res_layer.{last}.weight")
        if kernel is None or kernel.ndim != 4 or f"body.{unit}.res_layer.6.weight" in found:
            raise InputError(
                f"recognizer {reference!r}: body.{unit} is no unit of IR-18, IR-34, IR-50, IR-101 "
                "or of these with squeeze and excitation; accepted are AdaFace weights of these"
            )
        widths.append(kernel.shape[0])
    depths = tuple(widths.count(width) for width in WIDTHS)
    if depths not in DEPTHS.values() or widths != sorted(widths):
        raise InputError(
            f"recognizer {reference!r}: depths {list(depths)} of widths {list(WIDTHS)}; accepted "
            "are AdaFace's IR-18, IR-34, IR-50, IR-101"
        )
    places = [f"layer{layer}.{n}" for layer, depth in enumerate(depths, 1) for n in range(depth)]
    weights: State = {}
    for name, value in found.items():
        if name.startswith("body."):
            _, unit, kind, position, rest = name.split(".", 4)
            part = parts.get(f"{kind}.{position}")
            target = f"{places[int(unit)]}.{part}" if part else ""
        else:
            part, _, rest = name.rpartition(".")
            target = ADAFACE_ENDS.get(part, "")
        if not target:
            raise InputError(
                f"recognizer {reference!r}: {name} has no place in an IR network; accepted are "
                "AdaFace's IR-18, IR-34, IR-50, IR-101"
            )
        weights[f"{target}.{rest}"] = value
    for layer, width in enumerate(WIDTHS, 1):
        if f"layer{layer}.0.downsample.0.weight" not in weights:
            place = f"layer{layer}.0.downsample"
            weights[f"{place}.0.weight"] = torch.eye(width)[:, :, None, None]
            weights |= _unchanging(f"{place}.1", width)
    if older:
        for place, width in zip(places, widths, strict=True):
            weights |= _unchanging(f"{place}.bn2", width)
    if "features.running_mean" in weights:
        size = weights["features.running_mean"].shape
        weights.setdefault("features.weight", torch.ones(size))
        weights.setdefault("features.bias", torch.zeros(size))
    return weights, depths


def _unchanging(name: str, width: int) -> State:
    """Return a normalisation that changes nothing."""
    return {
        f"{name}.weight": torch.ones(width),
        f"{name}.bias": torch.zeros(width),
        f"{name}.running_mean": torch.zeros(width),
        f"{name}.running_var": torch.ones(width) - nn.BatchNorm2d(1).eps,
        f"{name}.num_batches_tracked": torch.tensor(0),
    }


def magface_to_iresnet(found: State) -> State:
    """Return MagFace's weights under the names of `IResNet`; its class weights stay behind."""
    for prefix in MAGFACE:
        if f"{prefix}conv1.weight" in found:
            return {
                name.removeprefix(prefix): value
                for name, value in found.items()
                if name.startswith(prefix)
            }
    return found


def mbf_to_mobilefacenet(found: State, reference: str) -> State:
    """Return the weights of arcface_torch's `mbf` under the names of a wide `MobileFaceNet`.

    Raises:
        InputError: a name has no place there, as in `mbf_large`, which has more units.
    """
    ends = {
        **{f"layers.{n}.layers": f"body.{n}" for n in range(2)},
        "conv_sep.layers": f"body.{PIECES}",
        "features.layers.0.layers": "global_depthwise",
    }

    def target(place: str) -> str:
        stem, _, position = place.rpartition(".")
        block, _, part = stem.removesuffix(".layers").rpartition(".layers.")
        if block in MBF_PLACES and part in MBF_PARTS:
            return f"body.{MBF_PLACES[block]}.{MBF_PARTS[part]}.{position}"
        if stem in ends:
            return f"{ends[stem]}.{position}"
        return {"features.layers.2": "linear", "features.layers.3": "features"}.get(place, "")

    accepted = "mbf; accepted is that of arcface_torch with 1, 4, 6 and 2 units"
    return _renamed(found, target, reference, accepted)


def port_to_mobilefacenet(found: State, reference: str) -> State:
    """Return the weights of the usual torch port of MobileFaceNet under the names of ours.

    Raises:
        InputError: a name has no place there.
    """

    def target(place: str) -> str:
        stem, _, layer = place.rpartition(".")
        block, _, part = stem.rpartition(".")
        if block in PORT_PLACES and part in PORT_PARTS and layer in PORT_LAYERS:
            return f"body.{PORT_PLACES[block]}.{PORT_PARTS[part]}.{PORT_LAYERS[layer]}"
        if stem in PORT_ENDS and layer in PORT_LAYERS:
            return f"{PORT_ENDS[stem]}.{PORT_LAYERS[layer]}"
        return {"linear": "linear", "bn": "features"}.get(place, "")

    accepted = (
        "MobileFaceNet; accepted is a state dict that begins conv1.conv.weight, "
        "conv2_dw.conv.weight"
    )
    return _renamed(found, target, reference, accepted)


def _renamed(found: State, target: Callable[[str], str], reference: str, accepted: str) -> State:
    """Return weights under the names of our MobileFaceNet; the last layer becomes a convolution.

    Args:
        found: weights by their names elsewhere.
        target: from a module's name there to ours; empty where it has no place.
        reference: of the recognizer, for errors.
        accepted: words after "has no place in".
    """
    made: State = {}
    for name, value in found.items():
        place, _, rest = name.rpartition(".")
        ours = target(place)
        if not ours:
            raise InputError(f"recognizer {reference!r}: {name} has no place in {accepted}")
        made[f"{ours}.{rest}"] = value[:, :, None, None] if ours == "linear" else value
    return made


def mobilefacenet(found: State, reference: str) -> tuple[nn.Module, int]:
    """Return MobileFaceNet of the usual port's names, and its image size; InputError for others."""
    return _mobile(port_to_mobilefacenet(found, reference), False, reference)


def _mobile(weights: State, wide: bool, reference: str) -> tuple[nn.Module, int]:
    dimension, _ = _sides(weights, "linear.weight", reference)
    _, side = _sides(weights, "global_depthwise.0.weight", reference, last=True)
    size = REDUCTION * side
    return filled(MobileFaceNet(size, dimension, wide), weights, reference), size


def _asserted(name: str, found: str, reference: str) -> None:
    if name not in ("", found):
        raise InputError(f"recognizer {reference!r}: it is {found}, not {name}; accepted: {found}")


def _sides(
    weights: Mapping[str, Tensor], name: str, reference: str, last: bool = False
) -> tuple[int, int]:
    """Return the first side of a matrix or kernel, and its second or last."""
    value = weights.get(name)
    if value is None or value.ndim < 2:
        shape = "missing" if value is None else list(value.shape)
        raise InputError(
            f"recognizer {reference!r}: weights do not fit: {name} is {shape}; accepted is one of "
            "two sides or more"
        )
    return value.shape[0], value.shape[-1 if last else 1]


def _size(flat: int, width: int) -> int:
    """Return the height and width of the images whose last map has so many numbers."""
    return REDUCTION * round((flat / width) ** 0.5)
