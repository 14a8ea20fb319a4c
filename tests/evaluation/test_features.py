"""Feature networks: a recognizer's and a scripted one, on a small dataset."""

import numpy as np
import pytest
import torch
from faces import face, make_dataset

from factory.datasets.store import Store
from factory.evaluation.features import IMAGENET_MEAN, IMAGENET_SD, extract_dataset, load_features
from factory.recipe import Backbone, InputError
from factory.recognition.backbones import make_backbone
from factory.recognition.recognizers import load_recognizer, save_recognizer


class Means(torch.nn.Module):
    def forward(self, x, return_features: bool = False):
        means = x.float().mean(dim=(2, 3))
        return means if return_features else means * 0


@pytest.fixture
def scripted(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.script(Means()).save(str(path))
    return path


def test_a_scripted_network_sees_the_range_it_asks_for(scripted):
    images = np.stack([face(0, 0), face(1, 0)])
    means = images.mean(axis=(1, 2))
    expected = {
        "bytes": means,
        "unit": means / 255,
        "signed": means / 127.5 - 1,
        "imagenet": (means / 255 - IMAGENET_MEAN) / IMAGENET_SD,
    }
    for scale, values in expected.items():
        network = load_features(
            f"torchscript:{scripted}?size=32&range={scale}&argument=return_features"
        )
        np.testing.assert_allclose(network.extract(images), values, rtol=1e-4, atol=1e-4)
    off = load_features(f"torchscript:{scripted}?size=32&range=unit")
    assert (off.extract(images) == 0).all()
    assert len(off.sha256) == 64


def test_a_recognizers_features_are_its_unit_embeddings(tmp_path):
    backbone = Backbone(name="iresnet", embedding_size=16, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    save_recognizer(path, make_backbone(backbone, 32).state_dict(), backbone, 32, "net", "MIT")
    network = load_features(str(path))
    images = np.stack([face(0, 0), face(1, 0)])
    raw = load_recognizer(str(path)).embed(images).astype(float)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(network.extract(images), unit, rtol=1e-12)
    assert (network.name, network.licence, network.scaled) == ("net", "MIT", True)


def test_a_layer_is_averaged_over_places(tmp_path):
    backbone = Backbone(name="iresnet", embedding_size=16, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    torch.manual_seed(0)
    net = make_backbone(backbone, 32).eval()
    path = tmp_path / "net.safetensors"
    save_recognizer(path, net.state_dict(), backbone, 32, "net", "MIT")
    network = load_features(f"{path}#layer2")
    images = np.stack([face(n, 0) for n in range(3)])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = net.prelu(net.bn1(net.conv1(x)))
    expected = net.layer2(net.layer1(x)).mean(dim=(2, 3)).detach().numpy()
    np.testing.assert_allclose(network.extract(images), expected, atol=1e-5)
    assert (network.name, network.scaled) == ("net#layer2", False)
    with pytest.raises(InputError, match=r"no layer x; accepted: conv1, .*layer1"):
        load_features(f"{path}#x")
    for other in ("onnx:net.onnx", "insightface:buffalo_l"):
        with pytest.raises(InputError, match=f"accepted is '{other}', or a layer of another"):
            load_features(f"{other}#layer2")


def test_datasets_are_read_in_order_and_resized_only_when_asked(tmp_path, scripted):
    store = Store(make_dataset(tmp_path / "d", identities=3, images_each=2))
    network = load_features(f"torchscript:{scripted}?size=32&range=bytes&argument=return_features")
    features, labels = extract_dataset(store, network)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.abs(features[3] - face(1, 1).mean(axis=(0, 1))).max() < 2  # but for JPEG
    small = load_features(f"torchscript:{scripted}?size=16&range=bytes&argument=return_features")
    with pytest.raises(InputError, match="--resize"):
        extract_dataset(store, small)
    assert len(extract_dataset(store, small, identities=2, images_each=1, resize=True)[1]) == 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("torchscript:{}?size=32", "range"),
        ("torchscript:{}?size=x&range=unit", "size=S"),
        ("torchscript:{}?size=32&range=unit&more=1", "accepted"),
        ("torchscript:none.pt?size=32&range=unit", "no file"),
        ("torchscript:" + __file__ + "?size=32&range=unit", "not TorchScript"),
    ],
)
def test_other_references_are_refused(scripted, reference, message):
    with pytest.raises(InputError, match=message):
        load_features(reference.format(scripted))
