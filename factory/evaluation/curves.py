"""The curve of a matcher's two errors (DET; ROC is 1 - FNMR over FMR), with few points."""

import numpy as np

from factory.evaluation.scores import RESOLVED, error_rates

POINTS = 96


def det_curve(genuine: np.ndarray, impostor: np.ndarray) -> dict[str, list[float]]:
    """Return FNMR at logarithmically spaced FMR, from the smallest resolved FMR to 1.

    Args:
        genuine: scores of genuine pairs, float [n], n of 1 or more; a higher one means more alike.
        impostor: scores of impostor pairs, float [m], m of 1 or more.

    Returns:
        "fmr", rising, and "fnmr", the lowest FNMR at no more than that FMR. Both are empty if there
        are too few impostor scores to resolve any rate.
    """
    if len(impostor) <= RESOLVED:
        return {"fmr": [], "fnmr": []}
    fmr, fnmr = error_rates(genuine, impostor)
    asked = np.geomspace(RESOLVED / len(impostor), 1.0, POINTS)
    # FMR rises along the arrays while FNMR falls, so the last allowed point is the best.
    at = np.searchsorted(fmr, asked * (1 + 1e-12), "right") - 1
    return {"fmr": _rounded(asked), "fnmr": _rounded(fnmr[at])}


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
