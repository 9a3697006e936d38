"""Resampling keeps sums right whatever the block, and gives the spread that theory gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.evaluation import bootstrap
from secateur.evaluation.bootstrap import interval, resampled_sums


@given(rows=st.integers(1, 40), resamples=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_every_resample_draws_as_many_rows(rows: int, resamples: int, seed: int) -> None:
    statistics = np.stack([np.ones(rows), np.arange(rows, dtype=float)], axis=1)
    sums = resampled_sums(statistics, seed=seed, resamples=resamples)
    assert sums.shape == (resamples, 2)
    assert (sums[:, 0] == rows).all()
    assert (sums[:, 1] >= 0).all()
    assert (sums[:, 1] <= rows * (rows - 1)).all()


def test_blocks_bound_the_memory_without_changing_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = np.random.default_rng(0).normal(size=(50, 3))
    whole = resampled_sums(statistics, seed=5, resamples=40)
    monkeypatch.setattr(bootstrap, "_MAX_CELLS", 7 * 50)
    np.testing.assert_allclose(resampled_sums(statistics, seed=5, resamples=40), whole)


def test_the_interval_of_a_mean_has_the_width_of_theory() -> None:
    rows = np.random.default_rng(1).normal(size=(400, 1))
    means = resampled_sums(rows, seed=0, resamples=2000) / 400
    low, high = interval(rows.mean(axis=0), means)
    expected = 2 * 1.96 * rows.std() / 20  # standard error of a mean of 400
    assert (high - low)[0] == pytest.approx(expected, rel=0.1)  # 2000 resamples know their quantiles to a few percent


def test_equal_rows_have_an_interval_of_no_width() -> None:
    rows = np.full((7, 1), 0.1)
    low, high = interval(rows.sum(0) / 7, resampled_sums(rows, seed=0, resamples=50) / 7)
    np.testing.assert_allclose([low, high], 0.1)


def test_the_interval_is_widened_to_the_figure() -> None:
    low, high = interval(np.array([5.0]), np.array([[1.0], [2.0]]))
    assert low[0] < 2.0
    assert high[0] == 5.0
