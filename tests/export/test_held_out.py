"""Held-out pairs: in no training image, and readable by the evaluator and by plain pickle."""

import pickle
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faces
import numpy as np
import patches
import pytest
from patches import Made, digest, pixels
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from factory.datasets.compose import compose
from factory.datasets.materialise import materialise
from factory.datasets.store import Store
from factory.evaluation.verification import Distances, Verification, read_bin
from factory.export.export import Options, export
from factory.export.pairs import write_pairs
from factory.recipe import ComposeRecipe, InputError, parse

PEOPLE = 60


@pytest.fixture
def many(tmp_path: Path) -> Made:
    identities = {"count": PEOPLE, "images_each": patches.SLOTS, "source": "train"}
    return patches.make(tmp_path / "data", tmp_path / "work", identities=identities)


def test_pairs_are_of_identities_left_out(many: Made, tmp_path: Path) -> None:
    folder = tmp_path / "acme_v1"
    about = export(many.store, Store(folder), Options("imagefolder", pairs=40))
    assert (about.pairs, about.held_out, about.classes) == (40, 20, PEOPLE - 1 - 20)
    found = Counter(
        (int(path.parent.name), digest(pixels(path.read_bytes())))
        for path in folder.glob("*/*.jpg")
    )
    kept = {entry: count for entry, count in many.pixels.items() if entry[0] < about.classes}
    assert found == kept
    images, same = pickle.loads((folder / "acme_v1_val.bin").read_bytes())
    assert (len(images), len(same), sum(same)) == (80, 40, 20)
    owner = {sha: label for label, sha in many.pixels}
    labels = [owner[digest(pixels(image))] for image in images]
    assert min(labels) >= about.classes
    assert [a == b for a, b in zip(labels[::2], labels[1::2], strict=True)] == same
    for fold in range(10):
        assert sum(same[4 * fold : 4 * fold + 4]) == 2
    folds = [set(labels[8 * fold : 8 * fold + 8]) for fold in range(10)]
    assert sum(map(len, folds)) == len(set.union(*folds))
    assert len(read_bin(folder / "acme_v1_val.bin").same) == 40
    text = (folder / "README.md").read_text()
    assert "40 of 20 more identities, in `acme_v1_val.bin`" in text


@pytest.mark.parametrize("format", ["arcface_torch", "hf", "wds", "edm"])
def test_every_format_has_its_pairs(format: str, many: Made, tmp_path: Path) -> None:
    folder = tmp_path / "acme_v1"
    about = export(many.store, Store(folder), Options(format, pairs=20, size=24))
    pairs = read_bin(folder / "acme_v1_val.bin")
    assert {pixels(image).shape for image in pairs.images} == {(24, 24, 3)}
    assert "acme_v1_val.bin" in (folder / "SHA256SUMS").read_text()
    if format == "arcface_torch":
        text = (folder / "acme_v1_r50.py").read_text()
        assert "['acme_v1_val', 'lfw', 'cfp_fp', 'agedb_30']" in text
        assert f"config.num_classes = {about.classes}\n" in text


@pytest.mark.parametrize("format", ["arcface_torch", "imagefolder"])
def test_labels_teach_and_pairs_judge(format: str, tmp_path: Path) -> None:
    """Learning from it tells strangers apart: a set with one label for all would fail."""
    made = patches.make(
        tmp_path / "data",
        tmp_path / "work",
        draw=faces.face,
        identities={"count": 80, "images_each": 6, "source": "train"},
        shard={"identities": 40},
    )
    folder = tmp_path / "acme_v1"
    export(made.store, Store(folder), Options(format, pairs=120))
    if format == "imagefolder":
        found = [(int(p.parent.name), p.read_bytes()) for p in sorted(folder.glob("*/*.jpg"))]
    else:
        lines = (folder / "train.idx").read_text().splitlines()
        starts = [int(line.split("\t")[1]) for line in lines]
        data = (folder / "train.rec").read_bytes()
        found = [
            (int(struct.unpack_from("<f", data, at + 12)[0]), data[at + 32 :]) for at in starts
        ]

    def rows(images: Iterable[bytes]) -> np.ndarray:
        return np.array([pixels(image)[::2, ::2].ravel() / 255 for image in images])

    reducer = PCA(60, random_state=0).fit(rows(image for _, image in found))
    learned = LinearDiscriminantAnalysis(n_components=20)
    learned.fit(reducer.transform(rows(i for _, i in found)), [label for label, _ in found])
    images, same = pickle.loads((folder / "acme_v1_val.bin").read_bytes())
    unit = learned.transform(reducer.transform(rows(images)))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distances = np.square(unit[::2] - unit[1::2]).sum(1)
    found = Verification.of(Distances.of("val", distances, np.array(same)))
    assert found.accuracy > 0.8


def test_more_pairs_than_images_allow_are_refused(many: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="genuine pairs"):
        export(many.store, Store(tmp_path / "acme_v1"), Options("wds", pairs=2000))


def view(made: Made, folder: Path, **pools: Any) -> Store:
    """Compose views of one pool, and write them out as a dataset beside."""
    raw = {"kind": "compose", "name": "mix", "seed": 3, "pools": pools}
    for pool in pools.values():
        pool["url"] = made.store.url
    parsed = parse(raw)
    assert isinstance(parsed, ComposeRecipe)
    store = Store(folder / "mix")
    compose(parsed, store)
    materialise(store, Store(folder / "shards"))
    return store


def test_repeated_images_make_no_pairs(many: Made, tmp_path: Path) -> None:
    mix = view(many, tmp_path, a={"repeat": 2})
    for number, store in enumerate((mix, Store(tmp_path / "shards"))):
        to = tmp_path / f"acme_{number}"
        with pytest.raises(InputError, match=r"pool a of the composition has repeat 2.*make_pairs"):
            export(store, Store(to), Options("wds", pairs=40))
        assert not to.exists()
    assert write_pairs(mix, tmp_path / "val.bin", 40).pairs == 40  # its index has each image once
    with pytest.raises(InputError, match="an image and its own copy"):
        write_pairs(Store(tmp_path / "shards"), tmp_path / "val.bin", 100)


def test_pools_that_overlap_make_no_pairs(many: Made, tmp_path: Path) -> None:
    mix = view(many, tmp_path, a={}, b={"identities_of": "a"})
    for number, store in enumerate((mix, Store(tmp_path / "shards"))):
        with pytest.raises(InputError, match="an image and its own copy"):
            write_pairs(store, tmp_path / "val.bin", 100)
        to = tmp_path / f"acme_{number}"
        with pytest.raises(InputError, match="an image and its own copy"):
            export(store, Store(to), Options("wds", pairs=100))
        assert not list(to.glob("*.bin")) and not (to / "SHA256SUMS").exists()
    assert not (tmp_path / "val.bin").exists()
