"""Figures of quality with 95 % intervals, of the built-in metrics and of a user's functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.errors import DataError, SecateurError
from secateur.evaluation.bootstrap import interval, resampled_sums
from secateur.evaluation.generate import Prediction
from secateur.evaluation.metrics import METRICS, UserMetric, mean
from secateur.evaluation.statistics import Written, with_count
from secateur.registry import choose
from secateur.tasks.pairs import Source


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        value: over all rows.
        low: lower end of the 95 % interval; None when a user's function gave one number for all rows.
        high: upper end, likewise.
        unit: "%", "tokens", or "" for a share or a ratio.
        higher_is_better: None when neither is.
    """

    value: float
    low: float | None
    high: float | None
    unit: str
    higher_is_better: bool | None


def score_predictions(
    metrics: Sequence[str | UserMetric],
    predictions: Sequence[Prediction] | Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    sources: Sequence[Source] | None = None,
    seed: int,
    resamples: int = 1000,
) -> dict[str, Figure]:
    """Score outputs, with 95 % bootstrap intervals over rows.

    Args:
        metrics: names of `metrics.METRICS`, or functions (predictions, references) -> one float per row, one float, or
            a dict of these by figure name. A function may carry the attributes `unit` and `higher_is_better`.
        predictions: one per row.
        references: the right outputs of each row, at least one each.
        sources: what each output was written from, without the task's prefix; `novelty` alone asks for them.
        seed: of the resampling.
        resamples: of rows, at least 1.

    Returns:
        Figure name -> figure, in the order of the metrics.

    Raises:
        DataError: no rows; not as many of predictions, references and sources; or a row without references.
        SecateurError: no such metric, a metric without what it needs, two figures of one name, or a function that
            gives something else.

    >>> figures = score_predictions(["per", "wer"], ["AH B", "K AE T"], [["AH B"], ["K AE D"]], seed=0)
    >>> figures["per"].value, figures["wer"].value
    (20.0, 50.0)
    """
    samples = resample(metrics, as_written(predictions, references, sources), seed=seed, resamples=resamples)
    return {name: sample.figure() for name, sample in samples.items()}


@dataclass(frozen=True)
class Sample:
    """One figure, over all rows and over each resample of them.

    Args:
        value: over all rows.
        resampled: float64 (resamples,); None when a user's function gave one number for all rows.
        unit: see `Figure`.
        higher_is_better: see `Figure`.
    """

    value: float
    resampled: np.ndarray | None
    unit: str
    higher_is_better: bool | None

    def figure(self) -> Figure:
        """The figure with its 95 % interval."""
        if self.resampled is None:
            return Figure(self.value, None, None, self.unit, self.higher_is_better)
        low, high = interval(np.array([self.value]), self.resampled[:, None])
        return Figure(self.value, float(low[0]), float(high[0]), self.unit, self.higher_is_better)


def resample(
    metrics: Sequence[str | UserMetric], written: Written, *, seed: int, resamples: int = 1000
) -> dict[str, Sample]:
    """Make the figures of outputs over all rows, and over rows drawn with replacement.

    Args:
        metrics: see `score_predictions`.
        written: see `as_written`.
        seed: of the resampling; the same rows are drawn for any outputs of as many rows.
        resamples: of rows, at least 1.

    Returns:
        Figure name -> sample, in the order of the metrics.

    Raises:
        SecateurError: see `score_predictions`.
    """
    table = [measured for metric in metrics for measured in _measure(metric, written)]
    names = [name for measured in table for name in measured.figures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SecateurError(f"metrics: two give a figure named {', '.join(twice)}. Remove or rename one.")
    sums = resampled_sums(np.concatenate([item.rows for item in table], axis=1), seed=seed, resamples=resamples)
    samples: dict[str, Sample] = {}
    start = 0
    for item in table:
        width = item.rows.shape[1]
        samples.update(item.samples(sums[:, start : start + width]))
        start += width
    return samples


@dataclass(frozen=True)
class _Measured:
    """Statistics of one metric on one set of outputs."""

    figures: tuple[str, ...]
    rows: np.ndarray
    aggregate: Callable[[np.ndarray], np.ndarray]
    unit: str
    higher_is_better: bool | None
    has_interval: bool = True

    def samples(self, sums: np.ndarray) -> dict[str, Sample]:
        """Make figures from the statistics and from their resampled sums, float64 (resamples, k)."""
        values, resampled = self.aggregate(self.rows.sum(axis=0)), self.aggregate(sums)
        return {
            name: Sample(
                float(values[index]),
                resampled[:, index] if self.has_interval else None,
                self.unit,
                self.higher_is_better,
            )
            for index, name in enumerate(self.figures)
        }


def as_written(
    predictions: Sequence[Prediction] | Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[Source] | None = None,
) -> Written:
    """Check that outputs, references and sources belong together.

    Args:
        predictions: one per row.
        references: the right outputs of each row, at least one each.
        sources: what each output was written from, without the task's prefix; None when that is not known.

    Returns:
        What metrics compare.

    Raises:
        DataError: no rows; not as many of each; or a row without references.
    """
    if len(predictions) != len(references):
        raise DataError(f"there are {len(predictions)} predictions and {len(references)} rows of references.")
    if sources is not None and len(predictions) != len(sources):
        raise DataError(f"there are {len(predictions)} predictions and {len(sources)} sources.")
    if not predictions:
        raise DataError("there are no predictions to score.")
    for number, row in enumerate(references, start=1):
        if isinstance(row, str) or not row:
            raise DataError(f"row {number}: references must be a list of at least one text, not {row!r:.60}.")
    texts = [item.text if isinstance(item, Prediction) else item for item in predictions]
    lengths = [item.num_tokens for item in predictions if isinstance(item, Prediction)]
    return Written(texts, references, lengths if len(lengths) == len(texts) else None, sources)


def _measure(metric: str | UserMetric, written: Written) -> list[_Measured]:
    if callable(metric):
        return _measure_user(metric, written)
    known = choose(METRICS, metric, "metric")
    return [_Measured(known.figures, known.statistics(written), known.aggregate, known.unit, known.higher_is_better)]


def _measure_user(function: UserMetric, written: Written) -> list[_Measured]:
    """Run a user's function and check what it gives."""
    name = getattr(function, "__name__", type(function).__name__)
    given = function(list(written.texts), [list(row) for row in written.references])
    figures = given if isinstance(given, Mapping) else {name: given}
    measured = []
    for key, value in figures.items():
        try:
            rows = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise SecateurError(f"metric {name}: {key} must be numbers, and is {type(value).__name__}.") from error
        if rows.shape not in ((), (len(written.texts),)):
            raise SecateurError(
                f"metric {name}: {key} must be one number or {len(written.texts)} numbers, one per row; its shape is "
                f"{rows.shape}."
            )
        if not np.isfinite(rows).all():
            place = "" if rows.ndim == 0 else f" in row {int(np.flatnonzero(~np.isfinite(rows))[0]) + 1}"
            raise SecateurError(f"metric {name}: {key} is not a finite number{place}.")
        measured.append(
            _Measured(
                (str(key),),
                with_count(np.broadcast_to(rows, len(written.texts))[:, None]),
                mean,
                getattr(function, "unit", ""),
                getattr(function, "higher_is_better", None),
                has_interval=rows.ndim == 1,
            )
        )
    return measured
