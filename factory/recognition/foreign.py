"""Other projects' recognizers: ONNX files, arcface_torch and AdaFace weights, insightface's packs.

A reference is `PREFIX:FILE?option=value&option=value`; FILE may be a URL. Every prefix accepts two
options: `licence`, the publisher's licence of the weights, and `channels`, the order of colours
that the network was trained with. Our interface is RGB in any case
(`factory.recognition.recognizers`).

onnx:FILE
    onnxruntime embeds; for gradients the graph is converted to torch (`onnx_graph`).
    `pixels=signed` feeds [-1, 1], `pixels=byte` feeds [0, 255]. The default is signed, unless the
    graph itself begins by subtracting and scaling, as insightface's older exports do.
arcface_torch:FILE
    A state dict of insightface's arcface_torch, read without running code. Architecture and size
    follow from its shapes; `name=r50` checks the architecture. RGB unless `channels` says
    otherwise.
adaface:FILE?channels=bgr
    A state dict of AdaFace's IR-18, IR-34, IR-50 or IR-101, as published or inside a checkpoint.
    CVLface trains the same networks on RGB, so `channels` must be given.
insightface:NAME
    The recognizer of a pack below `~/.insightface/models`. Nothing is downloaded without
    `download=yes`.
"""

import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from factory.datasets import catalog
from factory.datasets.located import local_file
from factory.datasets.provenance import sha256_file
from factory.recipe import InputError, with_options
from factory.recognition.backbones import DEPTHS, REDUCTION, WIDTHS, IResNet
from factory.recognition.recognizer import ACCEPTED, Recognizer, filled, torch_recognizer

CHANNELS = ("rgb", "bgr")
PIXELS = ("signed", "byte")
ADAFACE_PARTS = {  # AdaFace's name in a residual block -> ours
    "res_layer.0": "bn1",
    "res_layer.1": "conv1",
    "res_layer.2": "bn2",
    "res_layer.3": "prelu",
    "res_layer.4": "conv2",
    "res_layer.5": "bn3",
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
WRAPPERS = ("model.", "net.", "module.")  # prefixes of names, from Lightning, CVLface and DDP
AGREEMENT = 1e-4  # largest error of an ONNX graph's torch form, relative to its longest embedding
DOWNLOAD_SECONDS = 60.0


class Adapted(nn.Module):
    """A network for RGB in [-1, 1] around one that expects other channels or pixels.

    Args:
        network: the inner network.
        channels: the channels that it expects, rgb or bgr.
        pixels: the pixels that it expects, signed or byte.
        single: whether it takes one image at a time.
    """

    def __init__(
        self, network: nn.Module, channels: str, pixels: str = "signed", single: bool = False
    ) -> None:
        super().__init__()
        self.network, self.channels, self.pixels, self.single = network, channels, pixels, single

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings [B, D] of RGB images [B, 3, S, S] in [-1, 1]."""
        if self.channels == "bgr":
            x = x.flip(1)
        if self.pixels == "byte":
            x = (x + 1.0) * 127.5
        return torch.cat([self.network(one) for one in x.split(1 if self.single else len(x))])


def load_onnx(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load an ONNX file; InputError if it is not one, or does not map images to embeddings."""
    path, options = _parsed(reference, channels=CHANNELS, pixels=PIXELS)
    return _onnx(path, reference, options, device)


def _onnx(
    path: Path, reference: str, options: Mapping[str, str], device: torch.device | str
) -> Recognizer:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exception classes are not public
        reason = str(error).splitlines()[0]
        raise InputError(f"recognizer {reference!r}: not an ONNX model: {reason}") from error
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    shape = given.shape
    if len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int) or len(made.shape) != 2:
        raise InputError(
            f"recognizer {reference!r}: maps {shape} to {made.shape}; accepted is [B, 3, S, S] to "
            "[B, D]"
        )
    fixed = isinstance(shape[0], int)
    if fixed and shape[0] != 1:
        raise InputError(
            f"recognizer {reference!r}: batch is fixed to {shape[0]}; accepted: 1, any"
        )
    channels = options.get("channels", "rgb")
    pixels = options.get("pixels") or _pixels(path)

    def embed(images: np.ndarray) -> np.ndarray:
        images = images[..., ::-1] if channels == "bgr" else images
        batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
        batch = batch if pixels == "byte" else batch / 127.5 - 1.0
        each = 1 if fixed else len(batch)
        pieces = [batch[n : n + each] for n in range(0, len(batch), each)]
        return np.concatenate(
            [np.asarray(session.run([made.name], {given.name: one})[0]) for one in pieces]
        )

    def module() -> nn.Module:
        from factory.recognition.onnx_graph import OnnxNetwork

        network = Adapted(OnnxNetwork(path), channels, pixels, single=fixed)
        _compare(network, embed, shape[2], reference)
        return network.eval().requires_grad_(False).to(device)

    dimension = embed(np.zeros((1, shape[2], shape[2], 3), np.uint8)).shape[1]
    licence = catalog.licence_of(path, options.get("licence", ""))
    return Recognizer(
        path.stem, shape[2], dimension, sha256_file(path), licence, reference, module, embed
    )


def _pixels(path: Path) -> str:
    """Return the pixels that a graph expects: byte if it begins by subtracting and scaling."""
    import onnx

    first = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node[:8]}
    return "byte" if "Sub" in first and first & {"Mul", "Div"} else "signed"


def _compare(
    network: nn.Module, embed: Callable[[np.ndarray], np.ndarray], size: int, reference: str
) -> None:
    """Refuse a torch form whose embeddings differ from onnxruntime's."""
    images = np.random.Generator(np.random.Philox(key=0)).integers(0, 256, (2, size, size, 3))
    truth = embed(images.astype(np.uint8))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.inference_mode():
        found = network(batch).numpy()
    apart = float(np.abs(found - truth).max() / np.linalg.norm(truth, axis=1).max())
    if not apart <= AGREEMENT:
        raise InputError(
            f"recognizer {reference!r}: its torch form differs from onnxruntime by {apart:.2g} of "
            "the embedding's length, so it cannot be differentiated; accepted for losses and "
            "guidance are torch recognizers"
        )


def load_arcface_torch(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load a state dict of arcface_torch; InputError if it is not one, or would run code."""
    path, options = _parsed(reference, name=tuple(DEPTHS), channels=CHANNELS)
    weights = _state(path, reference)
    if "fc.weight" not in weights:
        raise InputError(
            f"recognizer {reference!r}: not an arcface_torch state dict (no fc.weight)"
        )
    depths = tuple(
        len({name.split(".")[1] for name in weights if name.startswith(f"layer{n}.")})
        for n in range(1, 5)
    )
    names = [name for name, known in DEPTHS.items() if known == depths]
    if not names or options.get("name", names[0]) not in names:
        raise InputError(
            f"recognizer {reference!r}: depths {list(depths)} are not those of "
            f"{options.get('name', 'a known network')}; accepted: {', '.join(DEPTHS)}"
        )
    return _iresnet(weights, depths, path, reference, options, dtype, device)


def load_adaface(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load AdaFace weights; InputError without `channels`, or if they are not an IR network's."""
    path, options = _parsed(reference, channels=CHANNELS)
    if "channels" not in options:
        raise InputError(
            f"recognizer {reference!r}: channels missing; accepted: adaface:FILE?channels=bgr "
            "(weights published with AdaFace) or channels=rgb (CVLface)"
        )
    found = _state(path, reference)
    weights, depths = adaface_to_iresnet(found, reference)
    return _iresnet(weights, depths, path, reference, options, dtype, device)


def adaface_to_iresnet(
    found: Mapping[str, Tensor], reference: str
) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """Return AdaFace's weights under the names of `IResNet`, and the units of its four layers.

    The networks are equal but for two things. If the first unit of a layer halves the map and keeps
    its width, AdaFace's shortcut takes every second pixel; here it is a convolution with the unit
    matrix. AdaFace's last normalisation has no scale and shift; here they are one and zero.

    Raises:
        InputError: the names or shapes are not those of a plain IR network.
    """
    body = {int(name.split(".")[1]) for name in found if name.startswith("body.")}
    widths = []
    for unit in range(len(body)):
        last = found.get(f"body.{unit}.res_layer.4.weight")
        if last is None or last.ndim != 4 or f"body.{unit}.res_layer.6.weight" in found:
            raise InputError(
                f"recognizer {reference!r}: body.{unit} is no unit of IR-18, IR-34, IR-50 or "
                "IR-101; accepted are AdaFace weights of these"
            )
        widths.append(last.shape[0])
    depths = tuple(widths.count(width) for width in WIDTHS)
    if depths not in DEPTHS.values() or widths != sorted(widths):
        raise InputError(
            f"recognizer {reference!r}: depths {list(depths)} of widths {list(WIDTHS)}; accepted "
            "are AdaFace's IR-18, IR-34, IR-50, IR-101"
        )
    places = [f"layer{layer}.{n}" for layer, depth in enumerate(depths, 1) for n in range(depth)]
    weights: dict[str, Tensor] = {}
    for name, value in found.items():
        if name.startswith("body."):
            _, unit, kind, position, rest = name.split(".", 4)
            part = ADAFACE_PARTS.get(f"{kind}.{position}")
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
            weights |= _every_second(f"layer{layer}.0.downsample", width)
    if "features.running_mean" in weights:
        size = weights["features.running_mean"].shape
        weights.setdefault("features.weight", torch.ones(size))
        weights.setdefault("features.bias", torch.zeros(size))
    return weights, depths


def _every_second(name: str, width: int) -> dict[str, Tensor]:
    """Return the weights of a shortcut that only takes every second pixel."""
    return {
        f"{name}.0.weight": torch.eye(width)[:, :, None, None],
        f"{name}.1.weight": torch.ones(width),
        f"{name}.1.bias": torch.zeros(width),
        f"{name}.1.running_mean": torch.zeros(width),
        f"{name}.1.running_var": torch.ones(width) - nn.BatchNorm2d(1).eps,
        f"{name}.1.num_batches_tracked": torch.tensor(0),
    }


def _iresnet(
    weights: Mapping[str, Tensor],
    depths: tuple[int, ...],
    path: Path,
    reference: str,
    options: Mapping[str, str],
    dtype: str,
    device: torch.device | str,
) -> Recognizer:
    try:
        width, (dimension, flat) = weights["bn2.weight"].numel(), weights["fc.weight"].shape
        widths = [weights[f"layer{n}.0.conv2.weight"].shape[0] for n in range(1, 5)]
    except (KeyError, ValueError) as error:
        raise InputError(f"recognizer {reference!r}: weights do not fit: {error}") from error
    size = REDUCTION * round((flat / width) ** 0.5)
    network = filled(IResNet(depths, widths, size, dimension), weights, reference)
    if options.get("channels") == "bgr":  # the first convolution with reversed channels takes RGB
        network.load_state_dict({"conv1.weight": weights["conv1.weight"].flip(1)}, strict=False)
    licence = catalog.licence_of(path, options.get("licence", ""))
    return torch_recognizer(network, path.stem, size, path, licence, reference, dtype, device)


def _state(path: Path, reference: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict or of a checkpoint, without the prefixes of wrappers."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for other files
        raise InputError(
            f"recognizer {reference!r}: not a state dict that loads without running code: "
            f"{str(error).splitlines()[0]}"
        ) from error
    inner = weights.get("state_dict", weights) if isinstance(weights, dict) else None
    if not isinstance(inner, dict):
        raise InputError(f"recognizer {reference!r}: holds {type(weights).__name__}; {ACCEPTED}")
    for wrapper in WRAPPERS:
        if any(name.startswith(wrapper) for name in inner):
            inner = {
                name.removeprefix(wrapper): value
                for name, value in inner.items()
                if name.startswith(wrapper)
            }
    return inner


def load_insightface(reference: str, dtype: str, device: torch.device | str) -> Recognizer:
    """Load the recognizer of an insightface pack; `download=yes` fetches a missing pack."""
    name, options = _options(reference, channels=CHANNELS, download=("yes", "no"))
    folder = models_folder() / name
    entry = next((entry for entry in catalog.packs() if entry.name == name), None)
    if not folder.is_dir():
        known = ", ".join(pack.name for pack in catalog.packs())
        if entry is None:
            raise InputError(
                f"recognizer {reference!r}: no folder {folder}; accepted is a folder there, or one "
                f"of: {known}"
            )
        if options.get("download") != "yes" or not entry.archive:
            raise InputError(f"recognizer {reference!r}: no {folder}; {catalog.by_hand(entry)}")
        print(f"{name}: licence {entry.licence}: {entry.note}, from {entry.source}", flush=True)
        download(entry.archive, folder, reference)
    found = [path for path in sorted(folder.rglob("*.onnx")) if _is_recognizer(path)]
    if len(found) != 1:
        raise InputError(
            f"recognizer {reference!r}: {len(found)} files in {folder} map 112 x 112 images to "
            "embeddings, accepted is one; onnx:FILE names one"
        )
    licence = entry.licence if entry else catalog.UNKNOWN
    return _onnx(found[0], reference, {"licence": licence, **options}, device)


def models_folder() -> Path:
    """Return the folder of insightface's packs."""
    return Path.home() / ".insightface" / "models"


def download(address: str, folder: Path, reference: str) -> None:
    """Fetch a zip of models and put its `.onnx` files into a folder, all of them or none.

    Raises:
        InputError: the address cannot be reached, or does not return a zip with models.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        archive, unpacked = Path(aside) / "archive.zip", Path(aside) / folder.name
        unpacked.mkdir()
        try:
            with (
                urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as answer,
                archive.open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    if name.endswith(".onnx"):  # only the last part of the name, to stay inside
                        (unpacked / Path(name).name).write_bytes(packed.read(name))
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(
                f"recognizer {reference!r}: {address} cannot be fetched ({error}); accepted is the "
                f"pack unpacked in {folder}"
            ) from error
        if not any(unpacked.iterdir()):
            raise InputError(f"recognizer {reference!r}: {address} holds no .onnx file")
        unpacked.rename(folder)


def _is_recognizer(path: Path) -> bool:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    sides = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    made = [len(output.type.tensor_type.shape.dim) for output in graph.output]
    return sides[1:] == [3, 112, 112] and made == [2]


def _parsed(reference: str, **accepted: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    _, options = _options(reference, **accepted)
    return local_file(reference, f"recognizer {reference!r}", f"accepted: {ACCEPTED}"), options


def _options(reference: str, **accepted: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Return the text between the prefix and `?`, and the options after checking their values."""
    what, options = with_options(reference.partition(":")[2])
    for name, value in options.items():
        if name == "licence" and value:
            continue
        if name not in accepted or value not in accepted[name]:
            known = [f"{option}={'|'.join(values)}" for option, values in accepted.items()]
            raise InputError(
                f"recognizer {reference!r}: option {name}={value}; accepted options: "
                f"{', '.join(known)}, licence=NAME"
            )
    return what, options


LOADERS: dict[str, Callable[[str, str, Any], Recognizer]] = {
    "adaface": load_adaface,
    "arcface_torch": load_arcface_torch,
    "insightface": load_insightface,
    "onnx": load_onnx,
}
