"""Intervals by resampling rows: how far a figure would move on another test set of the same size and kind.

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13 (percentile interval). Deviation: the interval
is widened to the figure itself where rounding or skew would leave that outside.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Aggregate = Callable[[np.ndarray], np.ndarray]
_MAX_CELLS = 2_000_000  # resamples x rows drawn at once: 16 MB of indices, 16 MB of weights


def resampled_sums(statistics: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """Sum per-row statistics over rows drawn with replacement.

    Args:
        statistics: float64 (rows, k), at least one row.
        seed: decides the draws; equal for equal (seed, resamples, rows), so two models are resampled alike.
        resamples: how many draws of `rows` rows.

    Returns:
        float64 (resamples, k).

    >>> resampled_sums(np.ones((5, 1)), seed=0, resamples=3)[:, 0].tolist()
    [5.0, 5.0, 5.0]
    """
    rows = len(statistics)
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, statistics.shape[1]))
    block = max(1, _MAX_CELLS // rows)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.integers(0, rows, size=(size, rows))
        drawn += np.arange(size)[:, None] * rows  # one range of cells per resample, counted in one pass
        weights = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows)
        sums[start : start + size] = weights.astype(np.float64) @ statistics
    return sums


def interval(values: np.ndarray, resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds within which 95 % of the resampled figures lie.

    Args:
        values: float64 (figures,), of the whole set.
        resampled: float64 (resamples, figures).

    Returns:
        Lower and upper bounds, float64 (figures,) each; `values` lies between them.

    >>> interval(np.array([2.0]), np.array([[1.0], [3.0]]))
    (array([1.05]), array([2.95]))
    """
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return np.minimum(low, values), np.maximum(high, values)
