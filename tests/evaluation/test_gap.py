import pytest

from factory.evaluation.gap import gap, over_seeds


def test_published_gaps_come_out():
    # DCFace, table 4: 94.62 real, 89.56 synthetic; CemiFace, table 6: 94.26 and 92.30
    assert gap([0.9462], [0.8956]).relative == pytest.approx(5.65, abs=0.005)
    assert gap([0.9426], [0.9230]).absolute == pytest.approx(1.96, abs=1e-9)


def test_errors_over_three_seeds():
    found = gap([0.93, 0.94, 0.95], [0.89, 0.90, 0.91])
    assert found.absolute == pytest.approx(4.0)
    # each sample sd is 0.01, so the error is 0.01 * sqrt(2 / 3)
    assert found.absolute_error == pytest.approx(100 * 0.01 * (2 / 3) ** 0.5)
    assert found.relative == pytest.approx(100 * 0.04 / 0.90)
    assert found.relative_error == pytest.approx(
        100 * 0.01 / 3**0.5 / 0.9 * (1 + (0.94 / 0.9) ** 2) ** 0.5
    )
    assert found.resolved is True
    assert "real - syn" in found.as_dict()["definitions"]["absolute"]


def test_a_difference_under_its_error_is_not_resolved():
    assert gap([0.90, 0.94], [0.91, 0.925]).resolved is False


def test_one_seed_has_no_spread():
    found = gap([0.9], [0.8])
    assert (found.absolute_error, found.relative_error, found.resolved) == (None, None, None)
    assert over_seeds([0.9]).sd is None
    with pytest.raises(ValueError, match="no values"):
        over_seeds([])
