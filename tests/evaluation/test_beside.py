"""A dataset beside real images, from the flags of the job to its tables."""

import argparse
import json

import pytest
import torch
from faces import make_dataset

from factory.datasets.store import Store
from factory.evaluation.beside import FLAGS, Beside
from factory.recipe import Backbone, InputError
from factory.recognition.backbones import make_backbone
from factory.recognition.recognizers import save_recognizer


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two datasets of other blobs, and a recognizer of 32 pixels."""
    folder = tmp_path_factory.mktemp("beside")
    for world, name in enumerate(("made", "real")):
        make_dataset(folder / name, identities=5, images_each=5, world=world)
    backbone = Backbone(name="iresnet", embedding_size=16, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    torch.manual_seed(0)
    weights = make_backbone(backbone, 32).state_dict()
    save_recognizer(folder / "net.safetensors", weights, backbone, 32, "net", "MIT")
    return folder


def given(work, *words):
    parser = argparse.ArgumentParser()
    for flag, options in FLAGS.items():
        parser.add_argument(flag, **options)
    parsed = parser.parse_args([word.format(work) for word in words])
    others = {"recognizer": f"{work}/net.safetensors", "identities": None, "images_each": None}
    return argparse.Namespace(**vars(parsed), **others, resize=False)


def test_variety_names_its_network_and_keeps_both_diversities_apart(work):
    store = Store(work / "made")
    found = Beside.of(given(work, "--real", "{}/real", "--k", "2")).measure(store)
    variety = found.content["variety"]
    assert variety["network"]["name"] == "net" and variety["network"]["licence"] == "MIT"
    assert (variety["k"], variety["images"], variety["real_images"]) == (2, 25, 25)
    assert variety["diversity"] is None
    assert 0 <= variety["diversity_unmatched"] <= 1
    assert found.tables[0].columns[-2:] == ("diversity", "diversity_unmatched")
    assert found.tables[0].rows[0][-2] == "not defined"
    assert "variety/diversity" not in found.metrics
    json.dumps(found.content, allow_nan=False)
    layer = ("--real", "{}/made", "--features", "{}/net.safetensors#layer2", "--same-identities")
    same = Beside.of(given(work, *layer)).measure(store).content["variety"]
    assert same["network"]["name"] == "net#layer2"
    assert (same["precision"], same["recall"], same["diversity"]) == (1.0, 1.0, 1.0)


def test_coverage_beside_itself_overlaps(work):
    asked = given(work, "--real", "{}/made", "--coverage")
    asked.resize = True
    found = Beside.of(asked).measure(Store(work / "made")).content["coverage"]
    assert all(one["overlap"] == 1.0 for one in found["attributes"].values())
    assert found["beside"].endswith("made")
    asked = given(work, "--coverage")
    with pytest.raises(InputError, match="32 x 32 pixels, the recognizer takes 64 x 64"):
        Beside.of(asked).measure(Store(work / "made"))
    asked.resize = True
    alone = Beside.of(asked).measure(Store(work / "made"))
    assert alone.content["coverage"]["beside"].startswith("people held out")
    assert set(alone.content) == {"coverage"}
    assert "coverage/yaw/mean" in alone.metrics


def test_nothing_asked_is_nothing_measured(work):
    found = Beside.of(given(work)).measure(Store(work / "made"))
    assert (found.content, found.tables, found.metrics) == ({}, [], {})
    for words in (["--k", "2"], ["--features", "x"], ["--same-identities"]):
        with pytest.raises(InputError, match="they need --real"):
            Beside.of(given(work, *words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--real {}/made --k 0", "--k 0; accepted is 1 or more"),
        ("--real {}/none", "no finished shard"),
        ("--real {}/made --features {}/none", "no file"),
        ("--coverage {}/none", "no file"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(work, words, message):
    with pytest.raises(InputError, match=message):
        Beside.of(given(work, *words.split()))
