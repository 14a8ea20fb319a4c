"""People: a pure function of position, disjoint sets, evenly spread."""

import numpy as np
import pytest

from factory.studio.people import PACKED, SPLITS, packed_position, person


def vector(split: str, index: int, plain: bool = False) -> np.ndarray:
    who = person(split, index, plain)
    return np.concatenate([[who.gender, who.age, who.weight], who.local, who.skin, who.iris])


def test_a_person_is_a_function_of_its_position():
    first = vector("train", 7)
    person.cache_clear()
    vector("judge", 3)
    assert np.array_equal(first, vector("train", 7))


def test_no_two_people_are_alike_within_or_between_splits():
    everybody = np.stack([vector(split, i) for split in SPLITS for i in range(30)])
    distance = np.abs(everybody[:, None] - everybody[None]).max(-1)
    np.fill_diagonal(distance, 1.0)
    assert distance.min() > 0.2


@pytest.mark.parametrize("split", SPLITS)
def test_packed_coordinates_fill_their_range_more_evenly_than_chance(split):
    n = 200
    at = np.array([list(packed_position(split, i).values()) for i in range(n)])
    assert at.shape == (n, len(PACKED))
    ordered = np.sort(at, axis=0)
    gap = np.abs(ordered - (np.arange(n)[:, None] + 0.5) / n).max(0)  # Kolmogorov-Smirnov
    # The 5 % point of independent draws is 1.36 / sqrt(n) = 0.096 for a single coordinate, and
    # their mean is 0.87 / sqrt(n) = 0.061.
    assert gap.max() < 0.096
    assert gap.mean() < 0.04


def test_shape_is_wide_asymmetric_and_within_the_range_of_the_head():
    local = np.stack([person("train", i).local for i in range(100)])
    assert np.abs(local).max() <= 1.0
    from factory.studio.head import load_head

    names = load_head().local_names
    left, right = names.index("l-eye-scale-incr"), names.index("r-eye-scale-incr")
    assert local[:, left].std() > 0.45
    assert 0.02 < np.abs(local[:, left] - local[:, right]).mean() < 0.3


def test_plain_people_share_the_face_but_not_the_detail():
    rich, plain = person("train", 5), person("train", 5, plain=True)
    assert np.array_equal(rich.local, plain.local)
    assert plain.freckles == plain.wrinkles == plain.blotches == plain.glasses_habit == 0.0
    assert plain.beard_style == "none" and len(plain.moles) == 0


@pytest.mark.parametrize(
    ("split", "index", "message"),
    [("nobody", 0, "split is 'nobody'; choose one of train"), ("train", -1, "index is -1")],
)
def test_an_unknown_position_is_refused(split, index, message):
    with pytest.raises(ValueError, match=message):
        person(split, index)
