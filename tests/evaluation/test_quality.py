import json

import numpy as np
import pytest

from factory.evaluation import quality
from factory.evaluation.dataset import Embedded
from factory.evaluation.scores import rows_of
from factory.recipe import InputError


def embedded(unit, labels):
    unit = np.asarray(unit, dtype=np.float64)
    keys = tuple(str(n) for n in range(len(unit)))
    return Embedded(unit, np.asarray(labels), keys)


def at(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_spread_is_to_the_centre_of_the_others():
    unit, labels = at(0, 60, 120, 45), np.array([0, 0, 0, 1])
    # the centres of the others stand at 90, 60 and 30 degrees: 90, 0 and 90 degrees away
    assert quality.spread(unit, labels) == pytest.approx((1 + 0 + 1) / 3)


def test_copies_have_no_spread_and_separate_perfectly():
    found = quality.measure(
        embedded(np.repeat(np.eye(4), 3, axis=0), np.repeat(range(4), 3)),
        quality.Radius(0.5, 1e-4, 100_000),
    )
    assert (found["eer"], found["spread"]) == (0.0, pytest.approx(0.0))
    assert (found["uniqueness"], found["consistency"]) == (1.0, 1.0)
    assert found["genuine_mean"] == pytest.approx(1.0)
    assert sum(found["histograms"]["genuine"]) == 12
    assert "leave-one-out" in found["definitions"]["spread"]
    json.dumps(found, allow_nan=False)


def test_uniqueness_packs_against_kept_centres_only():
    # 40 is too near 0 and dropped; 80 is near 40 only, so the greedy text keeps it
    centres = at(0, 40, 80)
    assert quality.uniqueness(centres, np.cos(np.radians(50))) == pytest.approx(2 / 3)
    assert quality.uniqueness(centres, np.cos(np.radians(30))) == 1.0
    assert quality.uniqueness(centres, np.cos(np.radians(85))) == pytest.approx(1 / 3)


@pytest.mark.parametrize("r", [-0.2, 0.0, 0.25, 0.5])
def test_uniqueness_is_the_walk_one_centre_at_a_time(r):
    centres = np.random.default_rng(8).normal(size=(1500, 12)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    kept = []
    for centre in centres.astype(np.float64):
        if all(float(centre @ other) < r for other in kept):
            kept.append(centre)
    assert quality.uniqueness(centres, r) == len(kept) / 1500


def test_consistency_counts_images_near_their_centre():
    unit, labels = at(0, 0, 90, 180, 180), np.array([0, 0, 0, 1, 1])
    rows = rows_of(labels)
    centres = np.stack([at(np.degrees(np.arctan2(1, 2)))[0], at(180)[0]])
    # the first centre stands at 26.6 degrees; at 45 degrees' radius its third image is outside
    r = np.cos(np.radians(45))
    assert quality.consistency(unit, rows, centres, r) == pytest.approx((2 / 3 + 1) / 2)


def test_too_little_to_measure_is_said():
    for labels in ([0, 0, 0], [0, 1, 2]):
        with pytest.raises(InputError, match="a measurement needs two identities"):
            quality.measure(embedded(np.eye(3), labels), quality.Radius(0.5, 1e-4, 0))


def test_gallery_radius_is_the_threshold_on_gallery_impostors():
    class Pixels:
        name, size = "pixels", 32

        def embed(self, images):
            return images.reshape(len(images), -1).astype(np.float32) - 127.5

    radius = quality.gallery_radius(Pixels(), people=20)
    assert radius.pairs == 20 * 19 // 2
    assert radius.fpr == pytest.approx(10 / 190)  # 1e-4 is not resolved by so few
    images = quality.portraits(20, 32)
    unit = Pixels().embed(images).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(20, 1)]
    assert (cosines >= radius.r + 1e-12).sum() == 10  # the threshold is just above the eleventh
