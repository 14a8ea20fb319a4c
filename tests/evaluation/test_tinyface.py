"""Closed-set identification against sorting every gallery by hand."""

import csv

import numpy as np
import pytest
import simplejpeg
from faces import face

from factory.evaluation import tinyface
from factory.recipe import InputError


class Grid:
    name, size = "grid", 32

    def embed(self, images):
        cells = images.reshape(len(images), 8, 4, 8, 4, 3).mean(axis=(2, 4))
        return (cells.reshape(len(images), -1) - 120.0).astype(np.float32)


def written(folder, people=5, distractors=7, size=32):
    plan = {"Gallery_Match": [(p, s) for p in range(people) for s in (0, 1)],
            "Probe": [(p, s) for p in range(people) for s in (2, 3, 4)],
            "Gallery_Distractor": [(100 + d, 0) for d in range(distractors)]}  # fmt: skip
    for part, faces in plan.items():
        (folder / part).mkdir(parents=True)
        for person, slot in faces:
            jpeg = simplejpeg.encode_jpeg(face(person, slot, size), 95)
            (folder / part / f"{person}_{slot}.jpg").write_bytes(jpeg)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_sorting_with_ties_against_the_probe(seed):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(-1, 2, (60, 3)).astype(float)  # few directions: many ties
    labels = rng.integers(-1, 6, len(gallery))
    labels[:6] = range(6)
    probes, own = gallery[rng.integers(0, len(gallery), 20)], rng.integers(0, 6, 20)
    found = tinyface.first_ranks(probes, own, gallery, labels)
    for probe, label, rank in zip(probes, own, found, strict=True):
        cosines = probe @ gallery.T
        order = sorted(range(len(gallery)), key=lambda n: (-cosines[n], labels[n] == label))
        assert rank == 1 + [labels[n] == label for n in order].index(True)


def test_blocks_do_not_change_the_ranks(monkeypatch):
    rng = np.random.default_rng(0)
    probes, gallery = rng.normal(size=(30, 4)), rng.normal(size=(50, 4))
    labels, gallery_labels = rng.integers(0, 5, 30), np.arange(50) % 6 - 1
    whole = tinyface.first_ranks(probes, labels, gallery, gallery_labels)
    monkeypatch.setattr(tinyface, "BLOCK", 7)
    assert (tinyface.first_ranks(probes, labels, gallery, gallery_labels) == whole).all()


def test_folders_and_lists_give_the_same(tmp_path):
    written(tmp_path / "folders")
    found = tinyface.evaluate_tinyface(Grid(), tmp_path / "folders")
    assert (found.content["probes"], found.content["gallery"]) == (15, 10)
    assert (found.content["distractors"], found.content["identities"]) == (7, 5)
    shares = found.content["results"]
    assert 0.2 < shares["rank-1"] <= shares["rank-5"] <= 1.0
    lists = tmp_path / "lists"
    lists.mkdir()
    for part in ("Gallery_Match", "Gallery_Distractor", "Probe"):
        with (lists / f"{part.lower()}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "identity"])
            for path in sorted((tmp_path / "folders" / part).iterdir()):
                rows.writerow([path, "" if "Dis" in part else "p" + path.stem.split("_")[0]])
    assert tinyface.evaluate_tinyface(Grid(), lists).content["results"] == shares
    assert found.metrics["TinyFace.rank-1"] == shares["rank-1"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "Probe").rename(f / "Probes"), "neither images in Probe nor probe.csv"),
        (lambda f: (f / "Probe" / "1_2.jpg").rename(f / "Probe" / "9_2.jpg"), "identity 9"),
        (lambda f: (f / "Probe" / "1_2.jpg").rename(f / "Probe" / "x.jpg"), "names no identity"),
        (lambda f: (f / "Probe" / "1_2.jpg").write_bytes(b"no image"), "cannot be read"),
        (lambda f: (f / "probe.csv").write_text("name\nx\n"), "columns file and identity"),
        (lambda f: (f / "probe.csv").write_text("file,identity\nx.jpg,1\n"), "missing"),
        (lambda f: (f / "probe.csv").write_text("identity,file\n1,x.jpg\n2\n"), "each line with"),
        (lambda f: (f / "probe.csv").write_bytes(b"file,identity\n\xff.jpg,1\n"), "CSV in UTF-8"),
        (lambda f: (f / "probe.csv").write_text(f"file\n{'x' * 200_000}\n"), "CSV in UTF-8"),
    ],
)
def test_a_set_that_is_not_whole_is_refused(tmp_path, spoil, message):
    written(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        tinyface.evaluate_tinyface(Grid(), tmp_path)


def test_images_of_another_size_only_when_asked(tmp_path):
    written(tmp_path, people=2, distractors=1, size=20)
    with pytest.raises(InputError, match="--resize"):
        tinyface.evaluate_tinyface(Grid(), tmp_path)
    assert tinyface.evaluate_tinyface(Grid(), tmp_path, resize=True).content["probes"] == 6
