"""p-values of several tests at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p-values: below alpha, the chance of any false finding is below alpha.

    p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)). Holm, A simple sequentially rejective multiple test
    procedure, Scandinavian Journal of Statistics 6, 1979. Holds whatever the dependence, for p-values that are valid
    at every look as well.

    Args:
        p_values: (m,); a NaN stays one and does not count in m.

    Returns:
        (m,) in the given order.

    Raises:
        ValueError: one is not between 0 and 1.
    """
    p, is_known = _checked(p_values)
    known = p[is_known]
    order = np.argsort(known, kind="stable")
    stepped = np.minimum(np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1)), 1.0)
    known[order] = stepped
    p[is_known] = known
    return p


def benjamini_hochberg(p_values: ArrayLike) -> np.ndarray:
    """Adjusted p-values for the false discovery rate: of the findings below q, a share of q is expected to be false.

    Benjamini and Hochberg, Controlling the false discovery rate, JRSS B 57, 1995; for independent tests or such that
    depend positively.

    Args:
        p_values: (m,); a NaN stays one and does not count in m.
    """
    p, is_known = _checked(p_values)
    if is_known.any():
        p[is_known] = stats.false_discovery_control(p[is_known])
    return p


def _checked(p_values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p = np.array(p_values, dtype=np.float64).ravel()
    is_known = ~np.isnan(p)
    if ((p[is_known] < 0) | (p[is_known] > 1)).any():
        raise ValueError("p-values must be between 0 and 1")
    return p, is_known
