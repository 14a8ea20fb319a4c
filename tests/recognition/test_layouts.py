"""Layouts without published figures, against networks written down here; and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from filled import filled
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from factory.datasets.provenance import models, sha256_file
from factory.recipe import Backbone, InputError, Weights
from factory.recognition.backbones import IResNet, MobileFaceNet, make_backbone
from factory.recognition.recognizers import load_recognizer

SIZE = 32
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
SMALL = Backbone(name="iresnet", embedding_size=16, widths=(8, 8, 12, 16), depths=(1, 2, 1, 1))


def settled(module: nn.Module) -> nn.Module:
    """Fill a network from its names, and freeze it."""
    layout = {name: list(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(filled(layout, seed=1))
    return module.eval().requires_grad_(False)


def signed(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images / 255.0 - 0.5) / 0.5).float().permute(0, 3, 1, 2)


def close(found: np.ndarray, truth: np.ndarray, tolerance: float = 1e-5) -> bool:
    return float(np.abs(found - truth).max() / np.linalg.norm(truth, axis=1).max()) < tolerance


class Excitation(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(width // 16, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.fc2(functional.relu(self.fc1(pooled))))


class ExcitedUnit(nn.Module):
    """A unit of IR-SE: of ArcFace's first networks, or of AdaFace's with its further norm."""

    def __init__(self, inside: int, outside: int, stride: int, older: bool, excited: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inside != outside:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )
        between = [] if older else [nn.BatchNorm2d(outside)]
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.Conv2d(inside, outside, 3, 1, 1, bias=False),
            *between,
            nn.PReLU(outside),
            nn.Conv2d(outside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        if excited:
            name = "5" if older else "se_block"
            self.res_layer.add_module(name, Excitation(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class ExcitedNet(nn.Module):
    """IR-SE of 2, 2, 2 and 2 units."""

    def __init__(self, older: bool, excited: bool) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        inside, units = 64, []
        for width in (64, 128, 256, 512):
            units.append(ExcitedUnit(inside, width, 2, older, excited))
            units.append(ExcitedUnit(width, width, 1, older, excited))
            inside = width
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * (SIZE // 16) ** 2, 24),
            nn.BatchNorm1d(24, affine=older),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.body(self.input_layer(x)))


@pytest.mark.parametrize("excited", [True, False], ids=["IR-SE", "IR"])
@pytest.mark.parametrize("older", [True, False], ids=["ArcFace's first", "AdaFace's"])
def test_ir_networks_with_and_without_excitation(tmp_path, older, excited) -> None:
    network = settled(ExcitedNet(older, excited))
    torch.save(network.state_dict(), tmp_path / "model_ir_se50.pth")
    loaded = load_recognizer(f"adaface:{tmp_path}/model_ir_se50.pth?channels=rgb")
    assert (loaded.size, loaded.dimension) == (SIZE, 24)
    assert isinstance(loaded.module, IResNet)  # whose stages DCFace looks into
    assert close(loaded.embed(IMAGES), network(signed(IMAGES)).numpy())
    turned = load_recognizer(f"adaface:{tmp_path}/model_ir_se50.pth?channels=bgr")
    truth = network(signed(IMAGES[..., ::-1].copy())).numpy()
    assert close(turned.embed(IMAGES), truth) and not close(loaded.embed(IMAGES), truth, 0.01)


def conv(inside: int, outside: int, side: int, stride: int, groups: int, slopes: bool) -> nn.Module:
    made = nn.Sequential()
    made.add_module(
        "conv", nn.Conv2d(inside, outside, side, stride, side // 2, groups=groups, bias=False)
    )
    made.add_module("bn", nn.BatchNorm2d(outside))
    if slopes:
        made.add_module("prelu", nn.PReLU(outside))
    return made


class Bottleneck(nn.Module):
    """MobileFaceNet's unit, by the port's names."""

    def __init__(self, inside: int, middle: int, outside: int, stride: int, added: bool) -> None:
        super().__init__()
        self.conv = conv(inside, middle, 1, 1, 1, True)
        self.conv_dw = conv(middle, middle, 3, stride, middle, True)
        self.project = conv(middle, outside, 1, 1, 1, False)
        self.added = added

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.project(self.conv_dw(self.conv(x)))
        return x + made if self.added else made


class Repeated(nn.Module):
    """So many of them, each added to what it is given."""

    def __init__(self, width: int, middle: int, count: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(Bottleneck(width, middle, width, 1, True) for _ in range(count))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class Port(nn.Module):
    """MobileFaceNet as its usual port to torch names it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(3, 64, 3, 2, 1, True)
        self.conv2_dw = conv(64, 64, 3, 1, 64, True)
        self.conv_23 = Bottleneck(64, 128, 64, 2, False)
        self.conv_3 = Repeated(64, 128, 4)
        self.conv_34 = Bottleneck(64, 256, 128, 2, False)
        self.conv_4 = Repeated(128, 256, 6)
        self.conv_45 = Bottleneck(128, 512, 128, 2, False)
        self.conv_5 = Repeated(128, 256, 2)
        self.conv_6_sep = conv(128, 512, 1, 1, 1, True)
        self.conv_6_dw = nn.Sequential()
        self.conv_6_dw.add_module("conv", nn.Conv2d(512, 512, SIZE // 16, groups=512, bias=False))
        self.conv_6_dw.add_module("bn", nn.BatchNorm2d(512))
        self.linear = nn.Linear(512, 24, bias=False)
        self.bn = nn.BatchNorm1d(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in list(self.children())[:-2]:
            x = part(x)
        return self.bn(self.linear(x.flatten(1)))


def test_the_usual_port_of_mobilefacenet(tmp_path) -> None:
    network = settled(Port())
    torch.save({"module." + k: v for k, v in network.state_dict().items()}, tmp_path / "m.pth")
    loaded = load_recognizer(f"mobilefacenet:{tmp_path}/m.pth?channels=bgr")
    truth = network(signed(IMAGES[..., ::-1].copy())).numpy()
    assert (loaded.size, loaded.dimension) == (SIZE, 24) and close(loaded.embed(IMAGES), truth)
    with pytest.raises(InputError, match=r"channels missing; accepted: mobilefacenet:FILE\?chan"):
        load_recognizer(f"mobilefacenet:{tmp_path}/m.pth")
    with pytest.raises(InputError, match=r"names are MobileFaceNet's; accepted is mobilefacenet:F"):
        load_recognizer(f"arcface_torch:{tmp_path}/m.pth")


@pytest.fixture(scope="module")
def plain() -> IResNet:
    network = settled(IResNet((2, 2, 2, 2), size=SIZE, embedding_size=16))
    assert isinstance(network, IResNet)
    return network


@pytest.mark.parametrize("prefix", ["features.module.", "module.features.", ""])
def test_magface_takes_bgr_of_0_to_1_and_its_own_epsilon(plain, tmp_path, prefix) -> None:
    weights = {prefix + name: value for name, value in plain.state_dict().items()}
    outside = {} if not prefix else {f"{prefix.partition('features')[0]}fc.weight": torch.zeros(9)}
    torch.save({"state_dict": weights | outside, "arch": "iresnet18"}, tmp_path / "magface.pth")
    loaded = load_recognizer(f"magface:{tmp_path}/magface.pth")

    theirs = IResNet((2, 2, 2, 2), size=SIZE, embedding_size=16)
    theirs.load_state_dict(plain.state_dict())
    for module in theirs.eval().modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 2e-5
    pixels = torch.from_numpy(IMAGES[..., ::-1] / 255.0).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        truth = theirs(pixels).numpy()
    assert isinstance(loaded.module, IResNet) and close(loaded.embed(IMAGES), truth)
    quality = np.linalg.norm(loaded.embed(IMAGES), axis=1)  # what MagFace means by length
    assert quality == pytest.approx(np.linalg.norm(truth, axis=1), rel=1e-5)
    if prefix:
        with pytest.raises(InputError, match="its names are MagFace's; accepted is magface:FILE"):
            load_recognizer(f"arcface_torch:{tmp_path}/magface.pth")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "backbone."])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.float64])
def test_what_frameworks_put_before_names_and_other_types(plain, tmp_path, prefix, kind) -> None:
    weights = {
        prefix + name: value.to(kind) if value.is_floating_point() else value
        for name, value in plain.state_dict().items()
        if not name.endswith("num_batches_tracked")  # older versions of torch counted none
    }
    torch.save(weights | {"epoch": np.float64(3.0), "step": np.int64(1)}, tmp_path / "b.pth")
    loaded = load_recognizer(f"arcface_torch:{tmp_path}/b.pth")
    with torch.no_grad():
        truth = plain(signed(IMAGES)).numpy()
    assert close(loaded.embed(IMAGES), truth, 1e-2 if kind == torch.float16 else 1e-5)


@pytest.mark.parametrize("name", ["iresnet", "ir_se50", "mobilefacenet", "r18"])
def test_model_pt_of_our_own_trainings(tmp_path, name) -> None:
    backbone = SMALL if name == "iresnet" else Backbone(name=name, embedding_size=16)
    network = settled(make_backbone(backbone, SIZE))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded = load_recognizer(f"arcface_torch:{tmp_path}/model.pt")
    assert close(loaded.embed(IMAGES), network(signed(IMAGES)).numpy())
    turned = load_recognizer(f"arcface_torch:{tmp_path}/model.pt?channels=bgr")
    assert close(turned.embed(IMAGES[..., ::-1].copy()), network(signed(IMAGES)).numpy())


def test_names_may_be_asserted(plain, tmp_path) -> None:
    torch.save(plain.state_dict(), tmp_path / "b.pth")
    torch.save(MobileFaceNet(SIZE, 16, wide=False).state_dict(), tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"depths \[2, 2, 2, 2\] are not those of r200; accepted"):
        load_recognizer(f"arcface_torch:{tmp_path}/b.pth?name=r200")
    with pytest.raises(InputError, match="it is mobilefacenet, not mbf; accepted: mobilefacenet"):
        load_recognizer(f"arcface_torch:{tmp_path}/m.pth?name=mbf")


def cut(weights: dict[str, torch.Tensor]) -> None:
    del weights["layer2.1.bn1.bias"], weights["bn1.weight"]
    weights["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    weights["extra.weight"] = torch.zeros(1)


def test_weights_that_do_not_fit_are_named_in_plain_words(plain, tmp_path) -> None:
    weights = plain.state_dict()
    cut(weights)
    torch.save(weights, tmp_path / "b.pth")
    with pytest.raises(InputError) as caught:
        load_recognizer(f"arcface_torch:{tmp_path}/b.pth")
    said = str(caught.value)
    assert "bn1.weight, layer2.1.bn1.bias missing; extra.weight of no use; " in said
    assert "layer1.0.conv1.weight is [64, 64, 5, 5] in place of [64, 64, 3, 3]" in said


class Trap:
    """Prints when a pickle that names it is loaded as pickles are."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("code ran",)


CLUMSY = {
    "a web page": b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "nothing": b"",
    "text": b"not a checkpoint",
}


@pytest.mark.parametrize("prefix", ["arcface_torch:{}", "adaface:{}?channels=bgr", "magface:{}"])
@pytest.mark.parametrize("what", [*CLUMSY, "half a file", "a trap"])
def test_no_error_shows_torchs_own_words(tmp_path, capsys, prefix, what, plain) -> None:
    path = tmp_path / "backbone.pth"
    if what == "a trap":
        torch.save({"state_dict": Trap(), "epoch": Trap()}, path)
    elif what == "half a file":
        torch.save(plain.state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(CLUMSY[what])
    with pytest.raises(InputError) as caught:
        load_recognizer(prefix.format(path))
    said = str(caught.value)
    assert said.startswith("recognizer ") and "accepted" in said and "\n" not in said
    assert said.isprintable()  # no escape codes
    for words in ("two options", "weights_only", "Weights only", "Error(s)", "Unpickl"):
        assert words not in said
    assert "code ran" not in capsys.readouterr().out


def graph(
    path: Path, kind: int = TensorProto.FLOAT, sides: tuple[object, object] = (SIZE, SIZE)
) -> tuple[str, np.ndarray]:
    """Write a graph of any type; return its reference and what it makes of `IMAGES`."""
    draws = np.random.default_rng(3)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = draws.normal(size=(6, 3, 5, 5)).astype(np.float16)  # exact in every type
    last = draws.normal(size=(6, 4)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["c0"], to=kind),
        helper.make_node("Conv", ["c0", "w"], ["c"], strides=[4, 4]),
        helper.make_node("LeakyRelu", ["c"], ["r"], alpha=0.25),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node(
            "Constant", [], ["l"], value=numpy_helper.from_array(last.astype(dtype), "l")
        ),
        helper.make_node("MatMul", ["f", "l"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["b", 3, *sides])],
        [helper.make_tensor_value_info("y", kind, ["b", 4])],
        [numpy_helper.from_array(weight.astype(dtype), "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    x = functional.conv2d(signed(IMAGES), torch.from_numpy(weight).float(), stride=4)
    truth = functional.leaky_relu(x, 0.25).mean((2, 3)) @ torch.from_numpy(last).float()
    return f"onnx:{path}", truth.numpy()


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE"])
def test_onnx_of_any_floating_type_embeds_and_gives_gradients(tmp_path, kind) -> None:
    reference, truth = graph(tmp_path / "g.onnx", getattr(TensorProto, kind))
    loaded = load_recognizer(reference)
    made = loaded.embed(IMAGES)
    assert made.dtype == np.float32 and close(made, truth)
    x = signed(IMAGES).requires_grad_()
    embedded = loaded.module(x)
    assert embedded.dtype == torch.float32 and close(embedded.detach().numpy(), truth)
    embedded.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "sides", "words"),
    [
        (
            "FLOAT",
            (112, 96),
            r"takes images of 112 x 96 pixels \(height x width\); accepted are sq",
        ),
        (
            "FLOAT",
            ("h", "w"),
            r"leaves the size of its images open \(h x w\); accepted is one that",
        ),
        ("FLOAT", (None, None), r"leaves the size of its images open .*make_dynamic_shape_fixed"),
        ("DOUBLE", (112, "w"), r"leaves the size of its images open \(112 x w\)"),
        ("UINT8", (SIZE, SIZE), r"of tensor\(uint8\) to .*; accepted is \[B, 3, S, S\] to \[B, D"),
    ],
)
def test_graphs_of_no_stated_square_are_refused(tmp_path, kind, sides, words) -> None:
    value = TensorProto.FLOAT if kind == "UINT8" else getattr(TensorProto, kind)
    reference, _ = graph(tmp_path / "g.onnx", value, sides)
    if kind == "UINT8":
        model = onnx.load(tmp_path / "g.onnx")
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
        onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(InputError, match=words):
        load_recognizer(reference)


def test_magfaces_weights_are_not_taken_for_a_plain_networks(plain, tmp_path) -> None:
    """DCFace's identity encoder is a plain one: it would see pixels of another range."""
    torch.save(plain.state_dict(), tmp_path / "magface.pth")
    loaded = load_recognizer(f"magface:{tmp_path}/magface.pth").module
    fresh = IResNet((2, 2, 2, 2), size=SIZE, embedding_size=16)
    with pytest.raises(RuntimeError, match=r"conv1\.middle"):
        fresh.load_state_dict(loaded.state_dict())


def test_a_recipe_names_magfaces_weights_with_their_licence(plain, tmp_path) -> None:
    torch.save(plain.state_dict(), tmp_path / "magface_epoch_00025.pth")
    location = f"magface:{tmp_path}/magface_epoch_00025.pth"
    (model,) = models({"teacher": Weights(location=location)})
    assert model.sha256 == sha256_file(tmp_path / "magface_epoch_00025.pth")
    assert (model.licence, load_recognizer(location).licence) == ("unknown", "unknown")
    assert load_recognizer(f"{location}?licence=own").licence == "own"
