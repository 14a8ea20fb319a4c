"""The first screen answers three questions from what manifests and measures state."""

import json

import numpy as np
import pytest
from faces import make_pool

from factory.datasets.licences import FORBIDS, LICENCES
from factory.datasets.manifest import load_manifest
from factory.datasets.store import Store
from factory.evaluation.dataset import Embedded
from factory.evaluation.gap import gap
from factory.evaluation.quality import Radius, measure
from factory.report import collect, page
from factory.report.few import wilson
from factory.report.first import answers, terms

MODEL = {"name": "teacher", "location": "w", "sha256": "", "licence": "MIT"}


@pytest.fixture
def manifest(tmp_path):
    return load_manifest(Store(make_pool(tmp_path / "d", 10, 3)))


def judged(people=10, each=3, noise=0.2):
    rng = np.random.default_rng(0)
    unit = np.repeat(rng.normal(size=(people, 24)), each, axis=0)
    unit = unit + noise * rng.normal(size=unit.shape)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    labels = np.repeat(range(people), each)
    return measure(Embedded(unit, labels, ("",) * len(labels)), Radius(0.5, 1e-4, 9))


def asked(manifests, results=None, rows=None, models=()):
    pixels = dict.fromkeys(manifests, "32 x 32 pixels")
    found = answers(results or {}, manifests, rows or {}, pixels, models)
    told = {one.name: one for answer in found for one in answer.told}
    return found, told


def test_what_is_it_good_may_i_use_it(manifest):
    found, told = asked({"blobs": manifest})
    assert [one.question for one in found] == [
        *("What is this dataset?", "Is it good?", "May I use it?")
    ]
    assert found[0].lead == "blobs holds 30 face images of 10 people."
    assert told["People x images"].value == "10 x 3"
    assert told["Size"].value == "32 x 32 pixels"
    assert "JPEG of quality 95" in told["Size"].meaning
    assert told["System"].value == told["Recipe"].value == "blobs"
    assert told["Licence"].value == "CC0-1.0"
    assert told["Digital source type"].value == "trainedAlgorithmicMedia"


def test_what_nobody_measured_is_said_with_the_command(manifest):
    found, told = asked({"blobs": manifest})
    assert "Nobody has measured it" in found[1].lead
    assert told["Quality"].value == told["Leakage"].value == "not measured"
    assert "factory measure URL" in told["Quality"].command
    assert "--against TRAINING --held-out UNSEEN" in told["Leakage"].command


def test_an_eer_from_few_pairs_carries_its_interval(manifest):
    few, many = judged(10, 3), judged(10, 6)  # 30 and 150 genuine pairs
    low, high = wilson(few["eer"], 30)
    told = asked({"blobs": manifest}, {"quality": {"blobs": {"judge": few}}})[1]
    eer = told["EER (equal error rate)"]
    stated = f"{100 * few['eer']:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}"
    assert eer.value == stated
    assert "only 30 genuine and 405 impostor pairs" in eer.meaning
    told = asked({"blobs": manifest}, {"quality": {"blobs": {"judge": many}}})[1]
    assert "interval" not in told["EER (equal error rate)"].value
    assert {"Spread", "Uniqueness", "Consistency"} <= set(told)


def test_the_judge_and_the_synthetic_faces_come_first(manifest):
    teacher, judge = {**judged(), "eer": 0.5}, {**judged(), "eer": 0.25}
    quality = {
        "real": {"judge": teacher},
        "other": {"judge": teacher},
        "synthetic": {"teacher": teacher, "judge": judge},
    }
    found, told = asked({"synthetic": manifest, "real": manifest}, {"quality": quality})
    assert told["EER (equal error rate)"].value.startswith("25.0 %")
    assert "Synthetic faces" in found[1].lead and found[0].question == "What is this?"
    assert told["Real faces"].value == "10 x 3"
    assert asked({"real": manifest}, {"quality": {"real": {"judge": judge}}})[1]["Quality"]


def test_kept_is_of_the_synthetic_faces(manifest):
    screened = manifest.totals.model_copy(update={"reasons": {"identity_drift": 30}})
    synthetic = manifest.model_copy(update={"totals": screened})
    told = asked({"synthetic": synthetic, "real": manifest})[1]
    assert (told["Kept"].value, manifest.totals.kept) == ("50.0 %", 30)
    assert "kept 30 of 60 images" in told["Kept"].meaning
    assert asked({"real": manifest})[1]["Kept"].value == "100.0 %"


def test_a_run_states_accuracy_and_gap(manifest):
    rows = {"real": {"average": [0.9, 0.92]}, "synthetic": {"average": [0.8, 0.82]}}
    results = {
        "gap": gap([0.9, 0.92], [0.8, 0.82]).as_dict(),
        "quality": {"synthetic": {"judge": judged()}},
    }
    found, told = asked({"synthetic": manifest}, results, rows)
    assert told["Accuracy"].value == "81.00 \u00b1 1.41 %"
    assert told["Gap to real"].value == "10.00 \u00b1 1.41 points"
    assert len(found[1].told) == 5
    assert [one.question for one in asked({}, results, rows)[0]] == ["Is it good?"]
    assert asked({})[0] == []


@pytest.mark.parametrize("licence", LICENCES)
def test_every_known_licence_has_words(licence):
    said = terms(licence)
    forbids = LICENCES.index(licence) >= LICENCES.index(FORBIDS)
    assert said.startswith("It allows") != forbids
    assert terms(f"{licence} AND Some-terms") != said or licence == "unknown"


def test_licences_of_many_parts():
    assert terms("MIT AND Some-terms") == (
        "This project does not know Some-terms. Read the terms first."
    )
    assert "Nobody has stated" in terms("Some-terms AND unknown")
    assert "forbids commercial" in terms("CC-BY-NC-4.0 AND MIT")


def test_models_and_source_types_are_named(manifest):
    photographs = manifest.model_copy(
        update={"digitalSourceType": "digitalCapture", "licence": "unknown"}
    )
    strict = {**MODEL, "name": "net", "licence": "CC-BY-NC-4.0"}
    both = {"blobs": manifest, "photographs": photographs}
    told = asked(both, models=[MODEL, strict])[1]
    assert told["Models"].value == "2 models"
    assert "MIT: teacher" in told["Models"].meaning
    assert "Mind CC-BY-NC-4.0" in told["Models"].meaning
    assert told["Licence of blobs"].value == "CC0-1.0"
    assert "Ask the maker" in told["Licence of photographs"].meaning
    assert "rights of their own" in told["Digital source type of photographs"].meaning
    assert "All allow" in asked({"blobs": manifest}, models=[MODEL])[1]["Models"].meaning
    assert asked({"blobs": manifest})[1]["Models"].value == "none"


@pytest.mark.parametrize(
    ("low", "words"), [(0.52, "It leaks"), (0.41, "No leak shows"), (None, "without held-out")]
)
def test_leakage_says_what_was_found(manifest, low, words):
    member = {"auc": 0.55, "low": low, "high": 0.6}
    leaks = {"leakage": {"membership": member} if low else {}}
    told = asked({"blobs": manifest}, {"quality": {"blobs": {"judge": {**judged(), **leaks}}}})[1]
    assert words in told["Leakage"].meaning
    assert not told["Leakage"].command


@pytest.mark.parametrize(
    "recipe",
    [
        {"kind": "compose", "name": "mix"},
        {"kind": "bank", "name": "bank", "identities": None, "image": []},
        {"name": ["<b>"], "system": {"a": 1}, "identities": "many", "image": {"format": "<i>"}},
        {},
    ],
)
def test_other_recipes_have_a_first_screen_too(tmp_path, recipe):
    url = make_pool(tmp_path / "d", 4, 2)
    path = tmp_path / "d" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "recipe": recipe}))
    html = page(collect(url))
    assert "What is this dataset?" in html and "8 images" in html
    assert "<b>" not in html and "<i>'" not in html
