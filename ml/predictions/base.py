"""What all predictions have in common: the error for too little data, and a careful hypergeometric function."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import hyp2f1, logsumexp


class NotEnoughData(ValueError):  # noqa: N818 - says what is the matter
    """There is too little to learn from, or nothing in it differs; the message says what is missing."""


def log_hyp2f1(a: ArrayLike, b: ArrayLike, c: ArrayLike, z: ArrayLike) -> np.ndarray:
    """ln 2F1(a, b; c; z) of Gauss, for c > a > 0, c > b > 0 and 0 <= z < 1, where all terms of the series are
    positive.

    Euler's transformation 2F1(a, b; c; z) = (1 - z)^(c - a - b) 2F1(c - a, c - b; c; z) (DLMF 15.8.1) takes
    the growth out, so that large a and b do not overflow. Where `scipy` still gives up, the series is added up
    in log space. With c below a or b there is no such transformation, and `scipy` is wrong there without
    saying so: such arguments are refused.

    Args:
        a, b, c, z: numbers that broadcast to one shape (n,).

    Returns:
        (n,) the logarithm.

    Raises:
        ValueError: an argument is out of its range.
    """
    a, b, c, z = (np.atleast_1d(x).astype(np.float64) for x in np.broadcast_arrays(a, b, c, z))
    if not ((a > 0).all() and (b > 0).all() and (c > a).all() and (c > b).all()):
        raise ValueError("log_hyp2f1 needs c > a > 0 and c > b > 0")
    if not ((z >= 0).all() and (z < 1).all()):
        raise ValueError("log_hyp2f1 needs 0 <= z < 1")
    turned = a + b > c
    left, right = np.where(turned, c - a, a), np.where(turned, c - b, b)
    outside = np.where(turned, (c - a - b) * np.log1p(-z), 0.0)
    with np.errstate(all="ignore"):
        inside = np.log(hyp2f1(left, right, c, z))
    broken = ~np.isfinite(inside)
    if broken.any():
        inside[broken] = _log_series(left[broken], right[broken], c[broken], z[broken])
    return outside + inside


def hyp2f1_series(a: float, b: float, c: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(n,) 2F1(a, b; c; z) by its series, for small a and b and 0 <= z < 1, where `scipy` gives up without a
    reason.

    At most a million terms: enough for z up to 0.9999 and beyond wherever c is large.
    """
    total, last = np.ones(len(c)), np.ones(len(c))
    for start in range(0, 1_000_000, 1_000):
        k = np.arange(start, start + 1_000, dtype=np.float64)
        ratios = (a + k) * (b + k) / ((c[:, None] + k) * (1 + k)) * z[:, None]
        terms = last[:, None] * np.cumprod(ratios, axis=1)
        total, last = total + terms.sum(axis=1), terms[:, -1]
        if (np.abs(last) <= 1e-16 * np.abs(total)).all():
            break
    return total


def _log_series(a: np.ndarray, b: np.ndarray, c: np.ndarray, z: np.ndarray) -> np.ndarray:
    """ln of sum_k (a)_k (b)_k / ((c)_k k!) z^k, 1,024 terms at a time until they no longer count."""
    log_z = np.log(np.maximum(z, np.finfo(float).tiny))
    total = np.zeros(len(a))  # the term of k = 0 is 1
    last = np.zeros(len(a))
    start = 0
    while start < 4_000_000:
        k = np.arange(start, start + 1_024, dtype=np.float64)
        steps = (
            np.log(a[:, None] + k)
            + np.log(b[:, None] + k)
            - np.log(c[:, None] + k)
            - np.log1p(k)
            + log_z[:, None]
        )
        terms = last[:, None] + np.cumsum(steps, axis=1)
        before = total
        total = np.asarray(logsumexp(np.column_stack([total, terms]), axis=1))
        last = terms[:, -1]
        start += 1_024
        if (total - before < 1e-13).all() and (steps[:, -1] < 0).all():
            break
    return total
