"""A dataset beside real images, from the flags of the job to its tables."""

import argparse
import json

import pytest
import torch
from faces import make_dataset

from factory.evaluation.beside import FLAGS, measure_beside
from factory.recipe import Backbone, InputError
from factory.recognition.backbones import make_backbone
from factory.recognition.recognizers import save_recognizer
from factory.shards.store import Store


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
    found = measure_beside(store, given(work, "--real", "{}/real", "--k", "2"))
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
    same = measure_beside(store, given(work, *layer)).content["variety"]
    assert same["network"]["name"] == "net#layer2"
    assert (same["precision"], same["recall"], same["diversity"]) == (1.0, 1.0, 1.0)


def test_coverage_beside_itself_overlaps(work):
    found = measure_beside(
        Store(work / "made"), given(work, "--real", "{}/made", "--coverage")
    ).content["coverage"]
    assert all(one["overlap"] == 1.0 for one in found["attributes"].values())
    assert found["beside"].endswith("made")
    alone = measure_beside(Store(work / "made"), given(work, "--coverage"))
    assert alone.content["coverage"]["beside"].startswith("people held out")
    assert set(alone.content) == {"coverage"}
    assert "coverage/yaw/mean" in alone.metrics


def test_nothing_asked_is_nothing_measured(work):
    found = measure_beside(Store(work / "made"), given(work))
    assert (found.content, found.tables, found.metrics) == ({}, [], {})
    for words in (["--k", "2"], ["--features", "x"], ["--same-identities"]):
        with pytest.raises(InputError, match="with --real only"):
            measure_beside(Store(work / "made"), given(work, *words))
