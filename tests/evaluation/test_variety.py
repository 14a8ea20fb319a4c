"""Diversity, precision, recall and FID against plain loops, closed forms and scipy."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from factory.evaluation import variety
from factory.recipe import InputError
from factory.seeding import generator, seed64


def loops_cover(points, centres, k):
    """Whether each point is nearer to some centre than that centre's k-th neighbour."""
    found = []
    for point in points:
        inside = False
        for j, centre in enumerate(centres):
            others = sorted(np.linalg.norm(centre - c) for i, c in enumerate(centres) if i != j)
            inside |= np.linalg.norm(point - centre) <= others[k - 1] + 1e-9
        found.append(inside)
    return np.array(found)


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0, 1, 5]))
@settings(max_examples=40, deadline=None)
def test_covering_equals_plain_loops(seed, k, digits):
    rng = np.random.default_rng(seed)  # rounded: ties and copies, everywhere at 0 digits
    points = np.round(rng.normal(size=(12, 3)), digits)
    centres = np.round(rng.normal(size=(9, 3)), digits)
    found = variety.covered(points, centres, variety.radii(centres, k))
    np.testing.assert_array_equal(found, loops_cover(points, centres, k))


def test_blocks_and_a_far_origin_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    points, centres = rng.normal(size=(50, 8)), rng.normal(size=(40, 8))
    whole = variety.covered(points, centres, variety.radii(centres, 3))
    monkeypatch.setattr(variety, "BLOCK", 7)
    np.testing.assert_array_equal(
        variety.covered(points, centres, variety.radii(centres, 3)), whole
    )
    far = variety.covered(points + 100, centres + 100, variety.radii(centres + 100, 3))
    np.testing.assert_array_equal(far, whole)


def classes(seed=0, people=6, each=5, spread=1.0):
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(people, 4)) * 5
    labels = np.repeat(range(people), each)
    return middles[labels] + rng.normal(size=(len(labels), 4)) * spread, labels


def test_diversity_of_the_same_and_of_a_drawn_class():
    made, labels = classes(0, spread=0.5)
    real, real_labels = classes(0, each=8)
    k = 2
    same = [loops_cover(real[real_labels == c], made[labels == c], k).mean() for c in range(6)]
    found, count = variety.diversity(made, labels, real, real_labels, k)
    assert (found, count) == (pytest.approx(np.mean(same)), 6)
    drawn = []
    for c in range(6):
        other = int(generator(seed64(3, "diversity-unmatched", c)).integers(6))
        drawn.append(loops_cover(real[real_labels == other], made[labels == c], k).mean())
    assert variety.diversity(made, labels, real, real_labels, k, 3)[0] == pytest.approx(
        np.mean(drawn)
    )


def test_copies_of_one_image_cover_only_themselves():
    real, labels = classes(2)
    copies = np.repeat(real[::5], 5, axis=0)
    assert variety.diversity(copies, labels, real, labels)[0] == pytest.approx(1 / 5)
    assert variety.diversity(real, labels, real, labels)[0] == 1.0


def test_the_same_set_is_all_precise_and_recalled_and_far_ones_not():
    real, labels = classes(3, people=10)
    found = variety.measure_variety(real, labels, real, labels, same_identities=True)
    assert (found["precision"], found["recall"], found["diversity"]) == (1.0, 1.0, 1.0)
    assert found["fid"] == pytest.approx(0.0, abs=1e-9)
    far = variety.measure_variety(real + 1000, labels, real, labels)
    assert (far["precision"], far["recall"], far["diversity_unmatched"]) == (0.0, 0.0, 0.0)
    assert far["diversity"] is None  # nobody said the labels are the same people
    json.dumps(found, allow_nan=False)


def test_small_classes_are_counted_out_and_few_images_have_no_fid():
    made, labels = classes(4, people=4, each=4)
    labels = np.where(np.arange(16) < 2, 9, labels)
    found = variety.measure_variety(made, labels, *classes(5, people=4), k=2)
    assert (found["classes"], found["classes_left_out"]) == (3, 2)
    wide = np.random.default_rng(0).normal(size=(20, 30))
    assert variety.measure_variety(wide, np.repeat(range(4), 5), *classes_of(wide))["fid"] is None


def classes_of(features):
    return features, np.repeat(range(4), 5)


def test_frechet_of_gaussians_has_a_closed_form():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(500, 3))
    unit = (unit - unit.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(unit.T))).T
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    shift = np.array([0.5, -1.0, 0.0])
    expected = (shift**2).sum() + ((a - b) ** 2).sum()  # diagonal covariances a^2 and b^2
    assert variety.frechet(unit * a, unit * b + shift) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_equals_scipys_root(seed):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6))
    second = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)) + 0.3
    one, two = np.cov(first.T), np.cov(second.T)
    root = np.real(linalg.sqrtm(one @ two))
    gap = first.mean(0) - second.mean(0)
    assert variety.frechet(first, second) == pytest.approx(
        gap @ gap + np.trace(one + two - 2 * root), rel=1e-6
    )


def test_too_little_is_said():
    made, labels = classes(0, people=2, each=3)
    with pytest.raises(InputError, match="--k 6"):
        variety.measure_variety(made, labels, made, labels, k=6)
    with pytest.raises(InputError, match="no class with more than 3"):
        variety.diversity(made, labels, made, labels, 3)
    with pytest.raises(InputError, match="real images of the same label"):
        variety.diversity(made, labels, made, labels + 10, 2)
    found = variety.measure_variety(made, labels, made, labels, k=3)
    assert found["diversity_unmatched"] is None and found["classes"] == 0
    assert found["precision"] == found["recall"] == 1.0
