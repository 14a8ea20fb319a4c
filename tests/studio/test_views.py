"""Views: pure functions of the seed, with the ranges their kinds promise."""

import json

import numpy as np
import pytest

from factory.studio.people import person
from factory.studio.views import KINDS, StudioView, attributes, draw_view, draw_view_kind


def same(a: StudioView, b: StudioView) -> bool:
    return all(np.array_equal(x, vars(b)[name]) for name, x in vars(a).items())


def test_a_view_is_a_function_of_its_seed():
    assert same(draw_view(11), draw_view(11))
    assert not same(draw_view(11), draw_view(12))
    for kind in KINDS:
        assert same(draw_view_kind(5, kind), draw_view_kind(5, kind))


def test_ordinary_views_are_as_wide_as_stated():
    views = [draw_view(i) for i in range(400)]
    yaw = np.array([v.yaw for v in views])
    assert 16 < yaw.std() < 28 and abs(yaw.mean()) < 4
    assert 4 < np.std([v.age_offset for v in views]) < 8
    assert np.std([v.light_azimuth for v in views]) > 40
    assert np.mean([np.linalg.norm(v.expression) > 0.5 for v in views]) > 0.3


def test_plain_views_are_narrow():
    views = [draw_view(i, plain=True) for i in range(100)]
    assert max(abs(v.yaw) for v in views) <= 21
    assert {v.background for v in views} == {0} and {v.age_offset for v in views} == {0.0}


def test_kinds_keep_their_promise():
    for seed in range(40):
        assert abs(draw_view_kind(seed, "frontal").yaw) <= 12
        assert 55 <= abs(draw_view_kind(seed, "profile").yaw) <= 80
        assert -20 <= draw_view_kind(seed, "young").age_offset <= -12
        assert 12 <= draw_view_kind(seed, "old").age_offset <= 20
        hard, soft = draw_view_kind(seed, "hard_light"), draw_view_kind(seed, "soft_light")
        assert hard.hardness == 1.0 and hard.ambient < 0.15 < 0.5 < soft.ambient
        strong = np.linalg.norm(draw_view_kind(seed, "strong_expression").expression)
        assert strong > np.linalg.norm(draw_view_kind(seed, "neutral").expression)
    assert same(draw_view_kind(3, "ordinary"), draw_view(3))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'blurred'; choose one of ordinary"):
        draw_view_kind(1, "blurred")


def test_attributes_are_json_floats_and_tell_the_truth():
    who, view = person("train", 3), draw_view(4)
    told = attributes(who, view)
    assert all(type(value) is float for value in told.values())
    assert json.loads(json.dumps(told)) == told
    assert told["yaw"] == view.yaw and 16 <= told["age"] <= 85
    assert told["glasses"] == float(view.glasses_draw < who.glasses_habit)
