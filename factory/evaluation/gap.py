"""The gap between a recognizer trained on real faces and one trained on synthetic faces.

There are two definitions, which are never mixed (docs/papers.md 0.3): `abs = real - syn` in points
of accuracy (CemiFace) and `rel = (real - syn) / syn` in percent (DCFace).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

ABSOLUTE = "abs = real - syn, in points of accuracy (CemiFace)"
RELATIVE = "rel = (real - syn) / syn, in percent (DCFace)"
UNRESOLVED = "a difference under its standard error is not resolved; one seed has none"
REAL = "real"  # the row that others are compared with


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean, sample standard deviation (None for one seed) and count."""

    mean: float
    sd: float | None
    seeds: int

    @property
    def error(self) -> float | None:
        """Return the standard error of the mean; None for one seed."""
        return None if self.sd is None else self.sd / self.seeds**0.5


def over_seeds(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation of one or more values."""
    if not len(values):
        raise ValueError("no values; accepted is one for each seed")
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), sd, len(values))


@dataclass(frozen=True)
class Gap:
    """A gap-to-real with its error, in both definitions.

    Attributes:
        absolute: real - syn, in points (100 times accuracy).
        absolute_error: its standard error over seeds; None with one seed.
        relative: (real - syn) / syn, in percent.
        relative_error: its standard error over seeds to first order; None with one seed.
        resolved: whether the gap exceeds its error; None if the error is unknown.
    """

    absolute: float
    absolute_error: float | None
    relative: float
    relative_error: float | None
    resolved: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Return the gap as a JSON-able mapping with its definitions."""
        definitions = {"absolute": ABSOLUTE, "relative": RELATIVE, "resolved": UNRESOLVED}
        return {**asdict(self), "definitions": definitions}


def gap(real: Sequence[float], synthetic: Sequence[float]) -> Gap:
    """Return the gap between two rows of accuracies with one value for each seed.

    Args:
        real: accuracies in (0, 1] of recognizers trained on real faces.
        synthetic: accuracies of recognizers trained on synthetic faces, with independent seeds.
    """
    r, s = over_seeds(real), over_seeds(synthetic)
    difference = r.mean - s.mean
    error = relative_error = is_resolved = None
    if r.error is not None and s.error is not None:
        error = (r.error**2 + s.error**2) ** 0.5
        relative_error = (
            100 * ((r.error / s.mean) ** 2 + (r.mean * s.error / s.mean**2) ** 2) ** 0.5
        )
        is_resolved = abs(difference) > error
    return Gap(
        absolute=100 * difference,
        absolute_error=None if error is None else 100 * error,
        relative=100 * difference / s.mean,
        relative_error=relative_error,
        resolved=is_resolved,
    )
