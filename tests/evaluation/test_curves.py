import numpy as np
import pytest

from factory.evaluation.curves import det_curve
from factory.evaluation.scores import RESOLVED


@pytest.mark.parametrize("levels", [4, 100, 10_000])
def test_each_point_is_the_lowest_fnmr_at_no_more_than_that_fmr(levels):
    rng = np.random.default_rng(levels)
    genuine = np.round(rng.normal(1, 1, 300) * levels) / levels
    impostor = np.round(rng.normal(0, 1, 900) * levels) / levels
    found = det_curve(genuine, impostor)
    thresholds = [*np.unique(np.concatenate([genuine, impostor])), np.inf]
    points = [((impostor >= t).mean(), (genuine < t).mean()) for t in thresholds]
    assert found["fmr"][0] == pytest.approx(RESOLVED / 900)
    assert found["fmr"][-1] == 1.0 and found["fnmr"][-1] == 0.0
    for fmr, fnmr in list(zip(found["fmr"], found["fnmr"], strict=True))[::7]:
        best = min(y for x, y in points if x <= fmr * (1 + 1e-5))
        assert fnmr == pytest.approx(best, abs=1e-5)


def test_too_few_impostors_resolve_nothing():
    assert det_curve(np.ones(5), np.zeros(RESOLVED)) == {"fmr": [], "fnmr": []}
