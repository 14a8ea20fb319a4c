import numpy as np
import pytest
import torch

from factory.datasets.store import Store
from factory.recipe import Backbone, InputError
from factory.recognition.backbones import IResNet, make_backbone
from factory.recognition.foreign import LOADERS
from factory.recognition.recognizer import ACCEPTED
from factory.recognition.recognizers import FILE, load_recognizer, save_recognizer

SIZE = 32
SMALL = Backbone(name="iresnet", embedding_size=16, widths=(8, 8, 12, 16), depths=(1, 1, 1, 1))
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def network():
    torch.manual_seed(0)
    module = make_backbone(SMALL, SIZE)
    with torch.no_grad():  # running statistics that are not the initial ones
        for _ in range(3):
            module(torch.randn(8, 3, SIZE, SIZE))
    return module.eval()


@pytest.fixture
def folder(network, tmp_path):
    save_recognizer(tmp_path / FILE, network.state_dict(), SMALL, SIZE, "small", "Apache-2.0")
    return tmp_path


def expected(network):
    with torch.no_grad():
        x = torch.from_numpy((IMAGES / 255.0 - 0.5) / 0.5).float().permute(0, 3, 1, 2)
        return network(x).numpy()


@pytest.mark.parametrize("file", ["", f"/{FILE}"])
def test_what_is_saved_is_loaded(network, folder, file):
    loaded = load_recognizer(f"{folder}{file}")
    assert (loaded.name, loaded.size, loaded.dimension) == ("small", SIZE, 16)
    assert loaded.licence == "Apache-2.0"
    assert len(loaded.sha256) == 64
    embeddings = loaded.embed(IMAGES)
    assert embeddings.dtype == np.float32
    assert embeddings == pytest.approx(expected(network), abs=1e-3)


def test_batches_do_not_change_embeddings(folder):
    loaded = load_recognizer(str(folder))
    many = np.tile(IMAGES, (60, 1, 1, 1))
    assert loaded.embed(many)[150:155] == pytest.approx(loaded.embed(IMAGES), abs=1e-4)
    assert loaded.embed(IMAGES[:0]).shape == (0, 16)


def test_bfloat16_is_near(network, folder):
    made = load_recognizer(str(folder), dtype="bfloat16").embed(IMAGES)
    truth = expected(network)
    cosines = (made * truth).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(truth, axis=1)
    assert (cosines > 0.99).all()


def test_module_is_frozen_and_differentiable(folder):
    module = load_recognizer(str(folder)).module
    assert module is not None
    images = torch.zeros(1, 3, SIZE, SIZE, requires_grad=True)
    module(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter that needs no onnxscript
def test_onnx_gives_the_same(network, tmp_path):
    path = tmp_path / "small.onnx"
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, SIZE, SIZE),),
        path,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "b"}, "y": {0: "b"}},
        dynamo=False,
    )
    loaded = load_recognizer(f"onnx:{path}")
    assert (loaded.size, loaded.dimension) == (SIZE, 16)
    assert loaded.embed(IMAGES) == pytest.approx(expected(network), abs=1e-3)


@pytest.mark.parametrize("query", ["", "?name=r18"])
def test_arcface_torch_state_dict(tmp_path, query):
    torch.manual_seed(0)
    network = IResNet((2, 2, 2, 2), size=SIZE, embedding_size=16).eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded = load_recognizer(f"arcface_torch:{tmp_path}/model.pt{query}")
    assert (loaded.size, loaded.dimension) == (SIZE, 16)
    truth = expected(network)  # large, since nothing normalised it yet
    assert loaded.embed(IMAGES) == pytest.approx(truth, abs=1e-5 * float(np.abs(truth).max()))


def test_a_training_behind_a_url_is_loaded(network, folder, s3):
    store = Store(s3 % "outputs/fr")
    store.put(folder / FILE, FILE)
    local = load_recognizer(str(folder))
    for location in (s3 % "outputs/fr", s3.replace("%s", f"outputs/fr/{FILE}")):
        loaded = load_recognizer(location)
        assert (loaded.sha256, loaded.location) == (local.sha256, location)
        assert loaded.embed(IMAGES) == pytest.approx(expected(network), abs=1e-3)
    with pytest.raises(
        InputError, match=r"no file s3://faces/outputs/none\?.*; accepted: a check"
    ) as e:
        load_recognizer(s3 % "outputs/none")
    assert "a-secret" not in str(e.value)


def test_others_weights_behind_a_url_are_loaded(tmp_path, s3):
    torch.manual_seed(0)
    network = IResNet((2, 2, 2, 2), size=SIZE, embedding_size=16).eval()
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    store = Store(s3 % "zoo/ms1mv3_arcface_r18_fp16")
    store.put(tmp_path / "backbone.pth", "backbone.pth")
    address = s3.replace("%s", "zoo/ms1mv3_arcface_r18_fp16/backbone.pth")
    loaded = load_recognizer(f"arcface_torch:{address}&channels=rgb")
    local = load_recognizer(f"arcface_torch:{tmp_path}/backbone.pth")
    assert (loaded.name, loaded.sha256) == ("backbone", local.sha256)
    assert loaded.licence == "non-commercial-research"  # the catalog knows the folder's name
    assert (loaded.embed(IMAGES) == local.embed(IMAGES)).all()
    with pytest.raises(InputError, match="chanels"):  # no option of ours, so the store refuses it
        load_recognizer(f"arcface_torch:{address}&chanels=rgb")


class Trap:
    def __reduce__(self):
        return print, ("code ran",)


def test_refuses_code_in_weights(tmp_path, capsys):
    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(InputError, match="without running code"):
        load_recognizer(f"arcface_torch:{tmp_path}/trap.pt")
    assert "code ran" not in capsys.readouterr().out


def test_what_is_accepted_names_every_prefix():
    for prefix in (*LOADERS, "dcface"):
        assert f"{prefix}:" in ACCEPTED
    with pytest.raises(InputError, match=r"unknown prefix 'keras'; accepted: .*dcface:FILE"):
        load_recognizer("keras:x.h5")


def test_refusals_name_what_is_accepted(folder, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match=r"unknown prefix 'keras'; accepted: .*onnx:FILE"):
        load_recognizer("keras:x.h5")
    with pytest.raises(InputError, match="no file"):
        load_recognizer(str(tmp_path / "absent.safetensors"))
    with pytest.raises(InputError, match="no file"):
        load_recognizer("onnx:absent.onnx")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_recognizer(str(tmp_path / "bad.safetensors"))
    (tmp_path / "bad.onnx").write_bytes(b"not one")
    with pytest.raises(InputError, match="not an ONNX model"):
        load_recognizer(f"onnx:{tmp_path}/bad.onnx")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="format None"):
        load_recognizer(str(tmp_path / "other.safetensors"))
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "half.pt")
    with pytest.raises(InputError, match="depths"):
        load_recognizer(f"arcface_torch:{tmp_path}/half.pt")
    with pytest.raises(InputError, match=r"uint8 \[B, 32, 32, 3\]"):
        load_recognizer(str(folder)).embed(np.zeros((1, 16, 16, 3), np.uint8))
