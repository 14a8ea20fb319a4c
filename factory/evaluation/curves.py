"""The curve of a matcher's two errors (DET; ROC is 1 - FNMR over FMR), thinned for a chart."""

import numpy as np

from factory.evaluation.scores import RESOLVED, error_rates

POINTS = 96


def det_curve(genuine: np.ndarray, impostor: np.ndarray) -> dict[str, list[float]]:
    """Return FNMR at logarithmically spaced FMR, from the smallest resolved to 1.

    Args:
        genuine: scores, float [n], n of 1 or more; higher is more alike.
        impostor: likewise.

    Returns:
        "fmr", rising, and "fnmr", the lowest FNMR at no more than that FMR; both empty where the
        impostor scores are too few to resolve any rate.
    """
    if len(impostor) <= RESOLVED:
        return {"fmr": [], "fnmr": []}
    fmr, fnmr = error_rates(genuine, impostor)
    asked = np.geomspace(RESOLVED / len(impostor), 1.0, POINTS)
    # FMR rises along the arrays while FNMR falls: the last point still allowed is the best.
    at = np.searchsorted(fmr, asked * (1 + 1e-12), "right") - 1
    return {"fmr": _rounded(asked), "fnmr": _rounded(fnmr[at])}


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
