"""Rates against scikit-learn's, and hand-made cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, roc_auc_score, roc_curve

from factory.evaluation import scores

SCORES = st.lists(st.integers(-20, 20), min_size=1, max_size=40)


@settings(deadline=None)  # a loaded machine is no fault
@given(SCORES, SCORES)
def test_roc_and_auc_equal_scikit_learn(genuine, impostor):
    g, i = np.array(genuine) / 20, np.array(impostor) / 20
    truth, values = np.r_[np.ones(len(g)), np.zeros(len(i))], np.r_[g, i]
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    fmr, fnmr = scores.error_rates(g, i)
    np.testing.assert_allclose(fmr, fpr, atol=1e-12)
    np.testing.assert_allclose(1 - fnmr, tpr, atol=1e-12)
    found = scores.rates(g, i)
    assert found.auc == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    assert found.auc == pytest.approx(auc(fpr, tpr), abs=1e-12)
    assert _on_segment(fpr, 1 - tpr, found.eer)


def _on_segment(fmr, fnmr, eer):
    """Whether the point (eer, eer) lies on the polyline of (fmr, fnmr)."""
    for a, b, c, d in zip(fmr, fnmr, fmr[1:], fnmr[1:], strict=False):
        cross = (c - a) * (eer - b) - (d - b) * (eer - a)
        inside = min(a, c) - 1e-9 <= eer <= max(a, c) + 1e-9
        if abs(cross) < 1e-9 and inside and min(b, d) - 1e-9 <= eer <= max(b, d) + 1e-9:
            return True
    return False


def test_gaussian_scores_have_the_closed_form_rates():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(2, 1, 400_000), rng.normal(0, 1, 400_000)
    found = scores.rates(genuine, impostor)
    assert found.eer == pytest.approx(0.158655, abs=2e-3)  # Phi(-1)
    assert found.auc == pytest.approx(0.921350, abs=2e-3)  # Phi(2 / sqrt 2)
    assert found.fdr == pytest.approx(2.0, abs=0.02)  # (2 - 0)^2 / (1 + 1)
    assert found.fmr100 == pytest.approx(0.627927, abs=5e-3)  # Phi(2.326348 - 2)
    assert found.fmr1000 == pytest.approx(0.862231, abs=5e-3)  # Phi(3.090232 - 2)


def test_perfect_and_useless_scores():
    perfect = scores.rates(np.array([0.9, 0.8]), np.array([0.1, 0.2]))
    assert (perfect.eer, perfect.auc) == (0.0, 1.0)
    useless = scores.rates(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    assert (useless.eer, useless.auc) == (0.5, 0.5)
    inverted = scores.rates(np.array([0.1, 0.2]), np.array([0.9, 0.8]))
    assert (inverted.eer, inverted.auc) == (1.0, 0.0)


def test_rates_that_few_pairs_cannot_tell_are_unresolved():
    genuine = np.linspace(0, 1, 50)
    assert scores.rates(genuine, np.linspace(-1, 0.5, 999)).fmr100 is None
    found = scores.rates(genuine, np.linspace(-1, 0.5, 1000))
    assert found.fmr100 is not None
    assert found.fmr1000 is None


def test_threshold_at_accepts_no_more_than_the_rate():
    impostor = np.arange(1000) / 1000
    threshold, rate = scores.threshold_at(impostor, 0.05)
    assert (np.sum(impostor >= threshold), rate) == (50, 0.05)
    threshold, rate = scores.threshold_at(impostor, 1e-4)
    assert (np.sum(impostor >= threshold), rate) == (10, 0.01)
    with pytest.raises(ValueError, match="9 impostor scores"):
        scores.threshold_at(impostor[:9], 0.1)


def test_all_pairs_are_taken_once():
    rng = np.random.default_rng(1)
    unit = rng.normal(size=(700, 4))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    labels = rng.integers(0, 40, 700)
    cosines = unit @ unit.T
    upper = np.triu(np.ones((700, 700), bool), 1)
    same = labels[:, None] == labels[None, :]
    genuine, how = scores.genuine_scores(unit, labels)
    assert how == f"all {len(genuine)} pairs inside an identity"
    np.testing.assert_allclose(np.sort(genuine), np.sort(cosines[upper & same]))
    impostor, how = scores.impostor_scores(unit, labels, seed=0)
    np.testing.assert_allclose(np.sort(impostor), np.sort(cosines[upper & ~same]))
    assert how.startswith(f"all {len(impostor)} ")


def test_sampled_impostors_are_impostors_uniform_and_seeded():
    labels = np.repeat([0, 1, 2], [1, 3, 6])
    unit = np.eye(3)[labels]  # cosine 1 inside an identity, 0 between
    drawn, how = scores.impostor_scores(unit, labels, seed=5, limit=20)
    assert len(drawn) == 20
    assert not drawn.any()
    assert "20 of 27 pairs" in how
    noisy = np.random.default_rng(0).normal(size=(10, 3))
    first, _ = scores.impostor_scores(noisy, labels, seed=5, limit=20)
    again, _ = scores.impostor_scores(noisy, labels, seed=5, limit=20)
    other, _ = scores.impostor_scores(noisy, labels, seed=6, limit=20)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_sampled_genuine_pairs_are_each_as_likely():
    """Every pair of five identities has a cosine of its own, which says which pair was drawn."""
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.repeat([5, 1, 9, 2, 3], [1, 2, 3, 7, 12]))
    unit = rng.normal(size=(len(labels), 6))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    every, _ = scores.genuine_scores(unit, labels)
    assert len(every) == 0 + 1 + 3 + 21 + 66
    drawn, how = scores.genuine_scores(unit, labels, seed=4, limit=90)
    assert how == "90 of 91 pairs inside an identity, drawn with seed 4"
    np.testing.assert_array_equal(drawn, scores.genuine_scores(unit, labels, seed=4, limit=90)[0])
    many = np.concatenate(
        [scores.genuine_scores(unit, labels, seed=n, limit=90)[0] for n in range(400)]
    )
    place = np.abs(np.sort(every)[:, None] - many[None, :]).argmin(axis=0)
    np.testing.assert_allclose(np.sort(every)[place], many, atol=1e-12)
    counts = np.bincount(place, minlength=91)
    expected = len(many) / 91
    assert ((counts - expected) ** 2 / expected).sum() < 148  # chi2, 90 degrees: one in 10^4


def test_a_large_identity_needs_no_matrix_of_all_pairs():
    """Few impostor pairs among many images; all of them are found."""
    labels = np.r_[np.zeros(3000, int), np.arange(1, 4)]
    unit = np.random.default_rng(0).normal(size=(3003, 3))
    found, how = scores.impostor_scores(unit, labels, seed=0)
    assert len(found) == 3 * 3000 + 3 and how.startswith("all 9003 ")
    expected = np.r_[
        (unit[:3000] @ unit[3000:].T).ravel(), (unit[-3:] @ unit[-3:].T)[[0, 0, 1], [1, 2, 2]]
    ]
    np.testing.assert_allclose(np.sort(found), np.sort(expected))


def test_scores_that_are_no_numbers_and_one_class_are_refused():
    good, bad = np.array([0.1, 0.2]), np.array([0.3, np.nan, np.inf])
    with pytest.raises(ValueError, match="2 of 3 genuine scores are not finite"):
        scores.rates(bad, good)
    with pytest.raises(ValueError, match="2 of 3 impostor scores are not finite"):
        scores.rates(good, bad)
    with pytest.raises(ValueError, match="2 genuine and 0 impostor scores; accepted is 1 or more"):
        scores.rates(good, np.empty(0))
    unit = np.eye(3)
    assert len(scores.genuine_scores(unit, np.arange(3))[0]) == 0  # nobody has two images
    assert len(scores.impostor_scores(unit, np.zeros(3, int), seed=0)[0]) == 0  # one identity


def test_histogram_counts_every_score():
    counts = scores.histogram(np.array([-1.0, 1.0, 1.0000001, 0.0, 0.999]))
    assert len(counts) == scores.BINS
    assert (counts[0], counts[scores.BINS // 2], counts[-1], sum(counts)) == (1, 1, 3, 5)
