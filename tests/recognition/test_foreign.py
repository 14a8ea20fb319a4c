"""Recognizers of others, against networks written down here from what their publishers state."""

import http.server
import socket
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gpu import pretended_gpu
from irnet import IRNet
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from factory.datasets import catalog
from factory.datasets.provenance import models, sha256_file
from factory.recipe import Backbone, InputError, Weights
from factory.recognition import foreign
from factory.recognition.backbones import DEPTHS, IResNet, MobileFaceNet, make_backbone
from factory.recognition.onnx_graph import OnnxNetwork
from factory.recognition.recognizers import load_recognizer

SIZE = 32
SMALL = Backbone(name="iresnet", embedding_size=16, widths=(8, 8, 12, 16), depths=(1, 1, 1, 1))
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
TEACHER = "package:weights/teacher/recognizer.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's older exporter


def settled(module: nn.Module, size: int = SIZE) -> nn.Module:
    """Give the normalisations running statistics that are not the initial ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            module.train()(torch.randn(8, 3, size, size))
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


def signed(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images / 255.0 - 0.5) / 0.5).float().permute(0, 3, 1, 2)


def export(module: nn.Module, path: Path, size: int = SIZE, fixed: bool = False) -> Path:
    axes = None if fixed else {"x": {0: "b"}, "y": {0: "b"}}
    torch.onnx.export(
        module,
        (torch.zeros(1, 3, size, size),),
        path,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
        dynamo=False,
        opset_version=13,
    )
    return path


def close(found: np.ndarray, truth: np.ndarray, tolerance: float = 1e-4) -> bool:
    return float(np.abs(found - truth).max() / np.linalg.norm(truth, axis=1).max()) < tolerance


class Attention(nn.Module):
    """A little transformer, for the operators that such recognizers are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.norm, self.qkv = nn.LayerNorm(24), nn.Linear(24, 72)
        self.out, self.head = nn.Linear(24, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], -1, 3, 24).unbind(2)
        x = x + functional.gelu(self.out(torch.softmax(q @ k.transpose(1, 2) / 5.0, -1) @ v))
        return self.head(x.mean(1)).clamp(-3, 3)


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    pooled = nn.Sequential(
        OrderedDict(
            c=nn.Conv2d(3, 8, 3, 2, 1),
            s=nn.Hardswish(),
            m=nn.MaxPool2d(3, 2, 1),
            a=nn.AvgPool2d(2),
            g=nn.AdaptiveAvgPool2d(1),
            f=nn.Flatten(),
            l=nn.Linear(8, 16),
        )
    )
    return {
        "iresnet": settled(make_backbone(SMALL, SIZE)),
        "prelu": settled(IResNet((1, 1, 1, 1), (8, 8, 12, 16), SIZE, 16)),
        "mobilefacenet": settled(MobileFaceNet(SIZE, 16)),
        "pooled": pooled.eval().requires_grad_(False),
        "attention": Attention().eval().requires_grad_(False),
    }


@pytest.mark.parametrize("name", ["iresnet", "prelu", "mobilefacenet", "pooled", "attention"])
@pytest.mark.parametrize("fixed", [False, True], ids=["any batch", "batch of one"])
def test_an_onnx_file_gives_embeddings_and_gradients(networks, tmp_path, name, fixed) -> None:
    path = export(networks[name], tmp_path / "x.onnx", fixed=fixed)
    loaded = load_recognizer(f"onnx:{path}")
    assert (loaded.size, loaded.dimension, loaded.sha256) == (SIZE, 16, sha256_file(path))
    truth = networks[name](signed(IMAGES)).detach().numpy()
    assert close(loaded.embed(IMAGES), truth)

    ours, theirs = signed(IMAGES).requires_grad_(), signed(IMAGES).requires_grad_()
    made, weight = loaded.module(ours), torch.randn(5, 16)
    assert close(made.detach().numpy(), loaded.embed(IMAGES))
    (made * weight).sum().backward()
    (networks[name](theirs) * weight).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    scale = theirs.grad.abs().max()
    assert scale > 0 and (ours.grad - theirs.grad).abs().max() < 1e-4 * scale
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    with pretended_gpu():
        on_gpu = load_recognizer(f"onnx:{path}", device="cuda").module
        assert torch.equal(on_gpu(signed(IMAGES).to("cuda")).cpu(), made)


def test_the_desk_teacher_as_an_onnx_file_of_others(tmp_path) -> None:
    own = load_recognizer(TEACHER)
    path = export(own.module, tmp_path / "teacher.onnx", own.size)
    loaded = load_recognizer(f"onnx:{path}?licence=CC0-1.0")
    images = np.random.default_rng(2).integers(0, 256, (3, own.size, own.size, 3), np.uint8)
    assert loaded.licence == "CC0-1.0"
    assert close(loaded.embed(images), own.embed(images))
    x, y = signed(images).requires_grad_(), signed(images).requires_grad_()
    functional.normalize(loaded.module(x)).sum().backward()
    functional.normalize(own.module(y)).sum().backward()
    assert x.grad is not None and y.grad is not None
    assert torch.allclose(x.grad, y.grad, atol=1e-4 * float(y.grad.abs().max()))
    weights = {"teacher": Weights(location=f"onnx:{path}?licence=CC0-1.0")}
    assert models(weights)[0].sha256 == sha256_file(path)  # a recipe may name it


def test_channels_and_pixels_of_an_onnx_file(networks, tmp_path) -> None:
    path = export(networks["iresnet"], tmp_path / "x.onnx")
    truth = networks["iresnet"](signed(IMAGES[..., ::-1].copy())).detach().numpy()
    swapped = load_recognizer(f"onnx:{path}?channels=bgr")
    assert close(swapped.embed(IMAGES), truth)
    assert close(swapped.module(signed(IMAGES)).numpy(), truth)


class Older(nn.Module):
    """A network that scales bytes itself, as insightface's exports from MXNet do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner((x - 127.5) * 0.0078125)


def test_a_graph_that_scales_bytes_itself_is_given_bytes(networks, tmp_path) -> None:
    path = export(Older(networks["iresnet"]).eval(), tmp_path / "x.onnx")
    x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float()
    truth = networks["iresnet"]((x - 127.5) / 128).detach().numpy()
    loaded = load_recognizer(f"onnx:{path}")
    assert close(loaded.embed(IMAGES), truth)
    assert close(loaded.module(signed(IMAGES)).numpy(), truth)
    other = load_recognizer(f"onnx:{path}?pixels=signed")
    assert not close(other.embed(IMAGES), truth, 0.01)


def graph(path: Path, nodes: list, constants: dict[str, np.ndarray], size: int = 4) -> Path:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "d"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def test_operators_an_exporter_of_torch_does_not_write(tmp_path) -> None:
    """Asymmetric padding, slices, splits, reductions: against onnxruntime itself."""
    draws = np.random.default_rng(3)
    constants = {
        "w": draws.normal(size=(6, 3, 2, 2)).astype(np.float32),
        "slope": draws.uniform(size=(6, 1, 1)).astype(np.float32),
        "start": np.array([1], np.int64),
        "stop": np.array([9], np.int64),
        "axis": np.array([2], np.int64),
        "sizes": np.array([2, 4], np.int64),
        "spatial": np.array([2, 3], np.int64),
        "half": np.array(0.5, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[0, 1, 1, 0], strides=[1, 1]),
        helper.make_node("PRelu", ["c", "slope"], ["p"]),
        helper.make_node("Slice", ["p", "start", "stop", "axis"], ["s"]),
        helper.make_node("Split", ["s", "sizes"], ["left", "right"], axis=1),
        helper.make_node("ReduceMean", ["left"], ["lm"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceSum", ["right", "spatial"], ["rs"], keepdims=0),
        helper.make_node("Concat", ["lm", "rs"], ["both"], axis=1),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Pow", ["both", "two"], ["squared"]),
        helper.make_node("Clip", ["squared", "half"], ["clipped"]),
        helper.make_node("LpNormalization", ["clipped"], ["y"], axis=1, p=2),
    ]
    path = graph(tmp_path / "g.onnx", nodes, constants)
    x = draws.normal(size=(3, 3, 4, 4)).astype(np.float32)
    truth = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]
    assert OnnxNetwork(path)(torch.from_numpy(x)).numpy() == pytest.approx(truth, abs=1e-6)


def test_an_operator_that_is_not_known_is_refused_only_for_gradients(tmp_path) -> None:
    nodes = [
        helper.make_node("GlobalMaxPool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["y"]),
    ]
    loaded = load_recognizer(f"onnx:{graph(tmp_path / 'g.onnx', nodes, {}, SIZE)}")
    assert loaded.embed(IMAGES).shape == (5, 3)
    with pytest.raises(InputError, match="GlobalMaxPool has no torch form here; accepted: Add, "):
        _ = loaded.module


class Stated(nn.Module):
    def __init__(self, inner: IRNet) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


@pytest.fixture(scope="module")
def adaface() -> IRNet:
    network = IRNet(DEPTHS["r18"], SIZE)
    settled(Stated(network))
    return network.eval()


@pytest.mark.parametrize("form", ["plain", "lightning", "cvlface"])
@pytest.mark.parametrize("channels", ["bgr", "rgb"])
def test_adaface_weights_give_what_adaface_gives(adaface, tmp_path, form, channels) -> None:
    weights = adaface.state_dict()
    if form == "lightning":
        weights = {"state_dict": {f"model.{k}": v for k, v in weights.items()}, "epoch": 25}
        weights["state_dict"]["head.kernel"] = torch.zeros(24, 10)
    elif form == "cvlface":
        weights = {f"net.{name}": value for name, value in weights.items()}
    torch.save(weights, tmp_path / "adaface_ir18_webface4m.ckpt")
    reference = f"adaface:{tmp_path}/adaface_ir18_webface4m.ckpt?channels={channels}"
    loaded = load_recognizer(reference)
    given = IMAGES[..., ::-1].copy() if channels == "bgr" else IMAGES
    with torch.no_grad():
        unit, length = adaface(signed(given))
    truth = (unit * length).numpy()
    assert (loaded.size, loaded.dimension, loaded.licence) == (SIZE, 24, "unknown")
    assert close(loaded.embed(IMAGES), truth)
    assert close(loaded.module(signed(IMAGES)).detach().numpy(), truth)


@pytest.mark.parametrize("prefix", ["adaface", "arcface_torch"])
def test_a_network_of_bgr_is_a_plain_iresnet_of_rgb(adaface, tmp_path, prefix) -> None:
    """What asks for a network's stages or state finds them, whatever colours it was trained on."""
    weights, depths = foreign.adaface_to_iresnet(adaface.state_dict(), "x")
    unfolded = IResNet(depths, size=SIZE, embedding_size=24).eval()
    unfolded.load_state_dict(weights)
    path = tmp_path / "x.pt"
    torch.save(adaface.state_dict() if prefix == "adaface" else weights, path)
    folded = load_recognizer(f"{prefix}:{path}?channels=bgr").module
    assert isinstance(folded, IResNet) and folded.state_dict().keys() == weights.keys()
    x = signed(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(folded.conv1(x), unfolded.conv1(x.flip(1)), atol=1e-6, rtol=0)
        assert close(folded(x).numpy(), unfolded(x.flip(1)).numpy(), 1e-5)
        assert not close(folded(x).numpy(), unfolded(x).numpy(), 1e-2)
    for name, value in folded.state_dict().items():
        assert torch.equal(value, weights[name]) == (name != "conv1.weight"), name
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize("name", ["r34", "r50", "r100"])
def test_adaface_names_of_the_deeper_networks(name) -> None:
    with torch.device("meta"):
        theirs = IRNet(DEPTHS[name], SIZE).state_dict()
        ours = IResNet(DEPTHS[name], size=SIZE, embedding_size=24).state_dict()
    made, depths = foreign.adaface_to_iresnet(theirs, "x")
    assert depths == DEPTHS[name]
    assert {key: value.shape for key, value in made.items()} == {
        key: value.shape for key, value in ours.items()
    }


def test_adaface_has_to_say_its_channels_and_be_plain(adaface, tmp_path) -> None:
    path = tmp_path / "x.pt"
    torch.save(adaface.state_dict(), path)
    with pytest.raises(InputError, match=r"channels missing; accepted: adaface:FILE\?channels=bgr"):
        load_recognizer(f"adaface:{path}")
    with pytest.raises(InputError, match=r"option channels=gbr; accepted .*channels=rgb\|bgr"):
        load_recognizer(f"adaface:{path}?channels=gbr")
    squeezed = adaface.state_dict() | {"body.0.res_layer.6.weight": torch.zeros(1)}
    torch.save(squeezed, path)
    with pytest.raises(InputError, match=r"body\.0 is no unit of IR-18"):
        load_recognizer(f"adaface:{path}?channels=bgr")
    torch.save({"fc.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="depths"):
        load_recognizer(f"adaface:{path}?channels=bgr")


def test_arcface_torch_with_its_channels_said(tmp_path) -> None:
    network = settled(IResNet((2, 2, 2, 2), size=SIZE, embedding_size=16))
    (tmp_path / "ms1mv3_arcface_r18_fp16").mkdir()
    path = tmp_path / "ms1mv3_arcface_r18_fp16" / "backbone.pth"
    torch.save(network.state_dict(), path)
    loaded = load_recognizer(f"arcface_torch:{path}?channels=bgr")
    assert loaded.licence == "non-commercial-research"
    truth = network(signed(IMAGES[..., ::-1].copy())).detach().numpy()
    assert close(loaded.embed(IMAGES), truth)
    stated = load_recognizer(f"arcface_torch:{path}?licence=MIT")
    assert stated.licence == "MIT"
    assert close(stated.embed(IMAGES), network(signed(IMAGES)).detach().numpy())
    with pytest.raises(InputError, match=r"option licence=; accepted options: name=r18\|"):
        load_recognizer(f"arcface_torch:{path}?licence=")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".insightface" / "models"


def face_network(size: int = 112) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8)
    ).eval()


def pack(folder: Path) -> nn.Module:
    """Write what a pack holds: a recognizer and another model."""
    folder.mkdir(parents=True)
    network = face_network()
    export(network, folder / "w600k_mbf.onnx", 112)
    export(face_network(), folder / "genderage.onnx", 96)
    return network


def test_a_pack_that_is_there(home) -> None:
    network = pack(home / "buffalo_sc")
    loaded = load_recognizer("insightface:buffalo_sc")
    assert (loaded.name, loaded.licence) == ("w600k_mbf", "non-commercial-research")
    images = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    assert close(loaded.embed(images), network(signed(images)).detach().numpy())


def test_nothing_is_downloaded_unless_asked_for(home, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(InputError) as said:
        load_recognizer("insightface:buffalo_l")
    assert "add ?download=yes to fetch it (licence non-commercial-research; " in str(said.value)
    with pytest.raises(InputError, match=r"unpack it below ~/\.insightface/models \(licence non-"):
        load_recognizer("insightface:antelopev2?download=yes")
    with pytest.raises(InputError, match="one of: buffalo_l, "):
        load_recognizer("insightface:buffalo_x?download=yes")
    assert not home.exists()


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, directory=str(folder), **named)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{served.server_address[1]}/"
        served.shutdown()


def test_a_download_that_was_asked_for_shows_the_licence(
    home, server, monkeypatch, tmp_path, capsys
) -> None:
    folder, address = server
    network = pack(tmp_path / "made")
    with zipfile.ZipFile(folder / "buffalo_l.zip", "w") as archive:
        archive.write(tmp_path / "made" / "w600k_mbf.onnx", "buffalo_l/w600k_r50.onnx")
        archive.write(tmp_path / "made" / "genderage.onnx", "../../genderage.onnx")
        archive.writestr("../../run.py", b"not a model")
    entry = next(e for e in catalog.CATALOG if e.name == "buffalo_l")
    served = catalog.Entry(**{**vars(entry), "archive": f"{address}buffalo_l.zip"})
    monkeypatch.setattr(catalog, "CATALOG", (served,))
    loaded = load_recognizer("insightface:buffalo_l?download=yes")
    assert "licence non-commercial-research" in capsys.readouterr().out
    images = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    assert close(loaded.embed(images), network(signed(images)).detach().numpy())
    found = sorted(path.relative_to(home.parent) for path in home.parent.rglob("*.*"))
    assert [str(path) for path in found] == [
        "models/buffalo_l/genderage.onnx",
        "models/buffalo_l/w600k_r50.onnx",
    ]


def test_an_address_that_does_not_answer_is_one_error(home, server, monkeypatch) -> None:
    _, address = server
    entry = next(e for e in catalog.CATALOG if e.name == "buffalo_l")
    served = catalog.Entry(**{**vars(entry), "archive": f"{address}absent.zip"})
    monkeypatch.setattr(catalog, "CATALOG", (served,))
    with pytest.raises(InputError, match=r"cannot be fetched .*404"):
        load_recognizer("insightface:buffalo_l?download=yes")
    assert list(home.iterdir()) == []


def test_the_catalog_names_licence_and_source_of_every_entry() -> None:
    for entry in catalog.CATALOG:
        assert entry.licence in (catalog.RESEARCH, catalog.UNKNOWN, "CC-BY-NC-SA-4.0", "MIT")
        assert entry.source.startswith("https://") and entry.files
    assert catalog.licence_of(Path("x/det_10g.onnx")) == catalog.RESEARCH
    assert catalog.licence_of(Path("x/own.onnx")) == catalog.UNKNOWN
    assert catalog.licence_of(Path("x/own.onnx"), "MIT") == "MIT"
