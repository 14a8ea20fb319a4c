"""Too few pairs: intervals against closed forms and scipy, and what a chart says instead."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from factory.evaluation.curves import det_curve
from factory.report.charts import det
from factory.report.few import (
    CHARTED,
    EXACT,
    curve_lacking,
    error_interval,
    group_interval,
    lacking,
    pairs_of,
    unresolved,
    wilson,
)


@pytest.mark.parametrize("count", [1, 7, 30, 99, 5000])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilsons_interval_is_scipys(count, level):
    for hits in {0, 1, count // 3, count}:
        wanted = binomtest(hits, count).proportion_ci(level, method="wilson")
        assert wilson(hits / count, count, level) == pytest.approx(tuple(wanted), abs=1e-12)


def test_wilsons_interval_of_none_has_a_closed_form():
    z = norm.ppf(0.975)
    for count in (3, 30, 99):
        assert wilson(0.0, count) == pytest.approx((0.0, z * z / (count + z * z)))


def test_wilsons_ends_solve_the_equation_they_come_from():
    """Both ends p obey |share - p| = z sqrt(p (1 - p) / n), for a share that is no fraction."""
    share, count, z = 0.1234, 37, norm.ppf(0.975)
    for end in wilson(share, count):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count))


def quality(genuine, impostor, eer=0.1):
    return {"eer": eer, "genuine_pairs": genuine, "impostor_pairs": impostor}


def test_an_eer_has_an_interval_below_a_hundred_pairs_of_either_kind():
    assert error_interval(quality(EXACT - 1, 9000)) == wilson(0.1, EXACT - 1)
    assert error_interval(quality(9000, 4)) == wilson(0.1, 4)
    assert error_interval(quality(EXACT, EXACT)) is None
    assert error_interval({"eer": 0.1}) is None  # nobody says of how many
    counted = {"eer": 0.1, "histograms": {"genuine": [5, 7], "impostor": [400]}}
    assert pairs_of(counted) == (12, 400)
    assert error_interval(counted) == wilson(0.1, 12)
    assert group_interval({"eer": 0.2, "genuine": 20, "impostors": 30}) == wilson(0.2, 20)
    assert group_interval({"eer": 0.2, "genuine": 200, "impostors": 300}) is None


def test_a_chart_of_too_few_says_how_many_it_has_and_needs():
    assert lacking({"images": CHARTED}) == ""
    said = lacking({"genuine pairs": 12, "impostor pairs": 9000})
    assert said == "There are only 12 genuine pairs. This chart needs 30 or more."
    assert "12 genuine pairs and 3 impostor" in lacking({"genuine pairs": 12, "impostor pairs": 3})
    html = unresolved("fewer than <b>")
    assert "unresolved" in html and "fewer than &lt;b&gt;" in html


def test_a_curve_is_resolved_from_ten_refused_pairs_upward():
    rng = np.random.default_rng(0)
    impostor = rng.normal(0, 0.1, 400)
    apart, near = np.full(180, 0.9), np.r_[rng.normal(0, 0.1, 60), np.full(120, 0.9)]
    assert "11 impostor" not in curve_lacking(det_curve(near, impostor), 180, 400)
    assert curve_lacking(det_curve(near, impostor), 180, 400) == ""
    said = curve_lacking(det_curve(apart, impostor), 180, 400)
    assert "resolve no FNMR below 5.56 %" in said and "1 % takes 1,000 genuine pairs" in said
    few = np.r_[np.full(2, -0.5), np.full(178, 0.9)]  # 2 of 180: ten such take 900
    said = curve_lacking(det_curve(few, impostor), 180, 400)
    assert "highest FNMR here is 1.11 %" in said and "900 genuine pairs" in said
    said = curve_lacking(det_curve(near, impostor[:10]), 180, 10)
    assert said == "There are only 10 impostor pairs. An FMR of 10 % takes 100 or more."


def test_a_curve_is_dotted_where_it_is_not_resolved():
    curve = {"fmr": [0.01, 0.1, 1.0], "fnmr": [0.5, 0.4, 0.01], "floor": [0.1]}
    chart = det({"a": curve}, "two parts")
    assert "stroke-dasharray" in chart
    assert chart != det({"a": {**curve, "floor": [0.0]}}, "two parts")


def test_a_name_with_dollar_signs_is_no_formula():
    curve = {"fmr": [0.01, 1.0], "fnmr": [0.5, 0.1], "floor": [0.0]}
    chart = det({"$\\frac{$": curve, "b": curve}, "money")
    assert "$\\frac{$" in chart
    assert "mathdefault" not in chart  # the powers of ten are drawn as such
