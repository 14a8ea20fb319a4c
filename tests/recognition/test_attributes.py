"""Attribute predictors: the shipped one against the studio's truth, and others' ONNX models."""

import numpy as np
import pytest
import torch

from factory.recipe import InputError
from factory.recognition import attributes
from factory.recognition.attributes import STUDIO, load_predictor
from factory.studio.people import person
from factory.studio.render import render
from factory.studio.views import attributes as truth_of
from factory.studio.views import draw_view

PEOPLE = 120


@pytest.fixture(scope="module")
def shown():
    """Faces of test people the predictor has never seen, and the truth of them."""
    who = [person("test", 50_000 + n) for n in range(PEOPLE)]
    views = [draw_view(n) for n in range(PEOPLE)]
    images = np.stack([render(p, v, 64) for p, v in zip(who, views, strict=True)])
    truth = [truth_of(p, v) for p, v in zip(who, views, strict=True)]
    return images, {name: np.array([one[name] for one in truth]) for name in STUDIO}


def test_the_shipped_predictor_errs_as_it_says(shown):
    images, truth = shown
    predictor = load_predictor()
    found = predictor.predict(images)
    assert list(found) == list(STUDIO) == list(predictor.attributes)
    for name, values in found.items():
        assert values.dtype == np.float32 and values.shape == (PEOPLE,)
        error = np.abs(values - truth[name]).mean()
        assert error < 1.35 * predictor.error[name] + 1e-6, name
        guess = np.abs(np.median(truth[name]) - truth[name]).mean()
        assert (error < guess) == (name not in predictor.unread), name
    assert predictor.unread == ("roll",)  # alignment has taken it away
    assert all(sum(predictor.reference[name]) > 1000 for name in STUDIO)
    assert predictor.licence == "Apache-2.0"


def test_a_mirror_turns_the_head_round(shown):
    images, _ = shown
    predictor = load_predictor()
    plain, mirrored = predictor.predict(images), predictor.predict(images[:, :, ::-1].copy())
    for name in ("yaw", "light_azimuth"):
        assert np.corrcoef(plain[name], -mirrored[name])[0, 1] > 0.8, name
    assert np.corrcoef(plain["age"], mirrored["age"])[0, 1] > 0.8


def test_batches_and_sizes_do_not_matter_much(shown, monkeypatch):
    images, _ = shown
    whole = load_predictor().predict(images)
    monkeypatch.setattr(attributes, "BATCH", 50)
    parts = load_predictor().predict(images)
    np.testing.assert_allclose(parts["yaw"], whole["yaw"], atol=1e-3)
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(load_predictor().predict(doubled)["yaw"] - whole["yaw"]).mean() < 2
    assert load_predictor().predict(images[:0])["age"].shape == (0,)


class Means(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))[:, :2]


@pytest.fixture
def onnx_file(tmp_path):
    path = tmp_path / "means.onnx"
    example = torch.zeros(1, 3, 32, 32)
    torch.onnx.export(Means(), (example,), str(path), dynamo=False,
                      dynamic_axes={"x": {0: "batch"}}, input_names=["x"])  # fmt: skip
    return path


def test_an_onnx_model_with_named_outputs(onnx_file):
    predictor = load_predictor(f"onnx:{onnx_file}?names=red:-1:1,green")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    found = predictor.predict(images)
    expected = images.mean(axis=(1, 2)) / 127.5 - 1
    np.testing.assert_allclose(found["red"], expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["green"], expected[:, 1], atol=1e-5)
    assert predictor.attributes["red"].low == -1
    assert len(predictor.predict(images.repeat(2, axis=1).repeat(2, axis=2))["red"]) == 5


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "accepted is onnx:FILE"),
        ("?names=one", "1 names for 2 outputs"),
        ("?names=one,two:5:1", "NAME:LOW:HIGH"),
        ("?names=one,two:x:1", "NAME:LOW:HIGH"),
    ],
)
def test_wrong_names_are_refused(onnx_file, query, message):
    with pytest.raises(InputError, match=message):
        load_predictor(f"onnx:{onnx_file}{query}")


def test_other_files_and_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        load_predictor(str(tmp_path / "none.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="not a safetensors file"):
        load_predictor(str(tmp_path / "bad.safetensors"))
    with pytest.raises(InputError, match="format"):
        load_predictor("package:weights/judge/recognizer.safetensors")
    with pytest.raises(InputError, match="accepted are uint8"):
        load_predictor().predict(np.zeros((1, 64, 64, 3), np.float32))
