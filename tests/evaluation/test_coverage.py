"""Coverage against scipy's Wasserstein distance, and a predictor whose answers are known."""

import json

import numpy as np
import pytest
from faces import face, make_dataset, make_pool
from scipy.stats import wasserstein_distance

from factory.datasets.store import Store
from factory.evaluation import coverage
from factory.recipe import InputError
from factory.recognition.attributes import Attribute, Predictor

BRIGHT = {"red": Attribute("grey levels", 0, 255), "blue": Attribute("grey levels", 0, 255)}


def brightness(images):
    return images.mean(axis=(1, 2))[:, [0, 2]].astype(np.float32)


def predictor(**reference):
    return Predictor("means", 32, BRIGHT, "0" * 64, "MIT", {"red": 1.5}, {}, reference, brightness)


def test_values_are_those_of_the_images_in_order(tmp_path):
    store = Store(make_dataset(tmp_path / "d", identities=4, images_each=3))
    found = coverage.predict_dataset(store, predictor(), identities=3, images_each=2)
    expected = [face(i, s)[..., 0].mean() for i in range(3) for s in range(2)]
    np.testing.assert_allclose(found.values["red"], expected, atol=2)  # but for JPEG
    assert found.truth == {}  # these sidecars state none


def test_images_of_other_sizes_are_resized_only_when_asked(tmp_path):
    store = Store(make_pool(tmp_path / "d", 3, 2, world=1, size=48))
    with pytest.raises(InputError, match=r"48 x 48 .* the recognizer takes 32 x 32.*--resize"):
        coverage.predict_dataset(store, predictor())
    found = coverage.predict_dataset(store, predictor(), resize=True)
    assert found.values["red"].shape == (6,)


def test_beside_itself_all_overlaps_and_beside_another_as_scipy_says(tmp_path):
    first = Store(make_dataset(tmp_path / "a", identities=8, images_each=3))
    second = Store(make_dataset(tmp_path / "b", identities=8, images_each=3, world=1))
    one, two = (coverage.predict_dataset(store, predictor()) for store in (first, second))
    same = coverage.measure_coverage(one, predictor(), one, "itself")
    assert all(a["overlap"] == 1.0 and a["distance"] == 0.0 for a in same["attributes"].values())
    found = coverage.measure_coverage(one, predictor(), two, "another")["attributes"]["red"]
    middles = (BRIGHT["red"].edges[:-1] + BRIGHT["red"].edges[1:]) / 2
    theirs = wasserstein_distance(middles, middles, found["histogram"], found["reference"])
    assert found["distance"] == pytest.approx(theirs)
    p, q = (np.array(found[key]) / 24 for key in ("histogram", "reference"))
    assert found["overlap"] == pytest.approx(1 - np.abs(p - q).sum() / 2)
    assert 0 < found["overlap"] < 1
    json.dumps(same, allow_nan=False)


def test_truth_and_references_stand_beside_where_they_exist():
    values = {"red": np.array([10, 20], np.float32), "blue": np.zeros(2, np.float32)}
    found = coverage.Predicted(values, {"red": np.array([11.0, 23.0])})
    reference = BRIGHT["red"].histogram(np.array([10.0, 20.0]))
    measured = coverage.measure_coverage(found, predictor(red=reference))
    red, blue = (measured["attributes"][name] for name in ("red", "blue"))
    assert (red["true_error"], red["held_out_error"], red["overlap"]) == (2.0, 1.5, 1.0)
    assert blue["overlap"] is None and blue["held_out_error"] is None
    rows = coverage.coverage_table(measured).rows
    assert rows[1][3:6] == ("-", "-", "-")
    assert measured["beside"].startswith("people held out")


def test_what_is_not_read_is_left_out():
    found = coverage.Predicted({name: np.zeros(2, np.float32) for name in BRIGHT})
    blind = predictor()
    blind.error_of_the_median = {"red": 1.5, "blue": 9.0}
    measured = coverage.measure_coverage(found, blind)
    assert (list(measured["attributes"]), measured["left_out"]) == (["blue"], ["red"])


def test_values_outside_count_in_the_nearest_bin():
    counts = BRIGHT["red"].histogram(np.array([-5.0, 300.0, 255.0, 0.0]))
    assert (counts[0], counts[-1], sum(counts)) == (2, 2, 4)
