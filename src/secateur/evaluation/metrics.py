"""Figures of quality. Each metric gives statistics per row whose sums make the figures, so that resampling is cheap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from secateur.errors import DataError, SecateurError
from secateur.evaluation.bootstrap import interval, resampled_sums
from secateur.evaluation.generate import Prediction
from secateur.evaluation.rouge import ROUGE_FIGURES, course_rows, rouge_rows
from secateur.evaluation.statistics import Written, exact_rows, length_rows, per_rows, wer_rows, with_count
from secateur.registry import choose


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        value: over all rows.
        low: lower end of the 95 % interval; None when a user's function gave one number for all rows.
        high: upper end, likewise.
        unit: "%", "tokens", or "" for a share between 0 and 1.
        higher_is_better: None when neither is.
    """

    value: float
    low: float | None
    high: float | None
    unit: str
    higher_is_better: bool | None


@dataclass(frozen=True)
class Metric:
    """How figures are made.

    Args:
        figures: names of the figures.
        statistics: outputs -> float64 (rows, k).
        aggregate: sums over rows, float64 (..., k) -> figures, float64 (..., len(figures)).
        unit: see `Figure`.
        higher_is_better: see `Figure`.
        settings: what else decides the figures, for the record: library, version, options.
    """

    figures: tuple[str, ...]
    statistics: Callable[[Written], np.ndarray]
    aggregate: Callable[[np.ndarray], np.ndarray]
    unit: str
    higher_is_better: bool | None
    settings: str


UserMetric = Callable[[list[str], list[list[str]]], Any]


def score_predictions(
    metrics: Sequence[str | UserMetric],
    predictions: Sequence[Prediction] | Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    seed: int,
    resamples: int = 1000,
) -> dict[str, Figure]:
    """Score outputs, with 95 % bootstrap intervals over rows.

    Args:
        metrics: names of `METRICS`, or functions (predictions, references) -> one float per row, one float, or a dict
            of these by figure name. A function may carry the attributes `unit` and `higher_is_better`.
        predictions: one per row.
        references: the right outputs of each row, at least one each.
        seed: of the resampling.
        resamples: of rows, at least 1.

    Returns:
        Figure name -> figure, in the order of the metrics.

    Raises:
        DataError: no rows, or as many predictions as references there are not, or a row without references.
        SecateurError: no such metric, two figures of one name, or a function that gives something else.

    >>> figures = score_predictions(["per", "wer"], ["AH B", "K AE T"], [["AH B"], ["K AE D"]], seed=0)
    >>> figures["per"].value, figures["wer"].value
    (20.0, 50.0)
    """
    written = _written(predictions, references)
    table = [measured for metric in metrics for measured in _measure(metric, written)]
    names = [name for measured in table for name in measured.figures]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SecateurError(f"metrics: two give a figure named {', '.join(twice)}. Remove or rename one.")
    sums = resampled_sums(np.concatenate([item.rows for item in table], axis=1), seed=seed, resamples=resamples)
    figures: dict[str, Figure] = {}
    start = 0
    for item in table:
        width = item.rows.shape[1]
        figures.update(item.figures_of(sums[:, start : start + width]))
        start += width
    return figures


def check_metrics(metrics: Sequence[str | UserMetric]) -> None:
    """Refuse unknown names before hours are spent on generation.

    Args:
        metrics: names of `METRICS`, or functions.

    Raises:
        SecateurError: no metric at all, or no such metric; the message lists them.
    """
    if not metrics:
        raise SecateurError(f"metrics: none given. There are: {', '.join(METRICS)}.")
    for metric in metrics:
        if not callable(metric):
            choose(METRICS, metric, "metric")


@dataclass(frozen=True)
class _Measured:
    """Statistics of one metric on one set of outputs."""

    figures: tuple[str, ...]
    rows: np.ndarray
    aggregate: Callable[[np.ndarray], np.ndarray]
    unit: str
    higher_is_better: bool | None
    has_interval: bool = True

    def figures_of(self, sums: np.ndarray) -> dict[str, Figure]:
        """Make figures from the statistics and from their resampled sums, float64 (resamples, k)."""
        values = self.aggregate(self.rows.sum(axis=0))
        low, high = interval(values, self.aggregate(sums))
        return {
            name: Figure(
                float(values[index]),
                float(low[index]) if self.has_interval else None,
                float(high[index]) if self.has_interval else None,
                self.unit,
                self.higher_is_better,
            )
            for index, name in enumerate(self.figures)
        }


def _written(predictions: Sequence[Prediction] | Sequence[str], references: Sequence[Sequence[str]]) -> Written:
    if len(predictions) != len(references):
        raise DataError(f"there are {len(predictions)} predictions and {len(references)} rows of references.")
    if not predictions:
        raise DataError("there are no predictions to score.")
    for number, row in enumerate(references, start=1):
        if isinstance(row, str) or not row:
            raise DataError(f"row {number}: references must be a list of at least one text, not {row!r:.60}.")
    texts = [item.text if isinstance(item, Prediction) else item for item in predictions]
    lengths = [item.num_tokens for item in predictions if isinstance(item, Prediction)]
    return Written(texts, references, lengths if len(lengths) == len(texts) else None)


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
                _mean,
                getattr(function, "unit", ""),
                getattr(function, "higher_is_better", None),
                has_interval=rows.ndim == 1,
            )
        )
    return measured


# Aggregates: sums over rows -> figures


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., :-1] / sums[..., -1:]


def _percent(sums: np.ndarray) -> np.ndarray:
    return 100.0 * _mean(sums)


def _error_rate(sums: np.ndarray) -> np.ndarray:
    """Divide the first sum by the second, in %; with references of no length at all every error counts whole."""
    return 100.0 * sums[..., :1] / np.maximum(sums[..., 1:], 1.0)


_RAPIDFUZZ = f"rapidfuzz {version('rapidfuzz')}"

METRICS: dict[str, Metric] = {
    "rouge": Metric(
        ROUGE_FIGURES,
        rouge_rows,
        _mean,
        "",
        True,
        f"rouge_score {version('rouge_score')}, stemmer on, F1, best reference, own sentence splitter for Lsum",
    ),
    "course_rouge_lsum": Metric(
        ("course_rouge_lsum",), course_rows, _mean, "", True, f"recall of sentence LCS, {_RAPIDFUZZ}, best reference"
    ),
    "per": Metric(
        ("per",),
        per_rows,
        _error_rate,
        "%",
        False,
        f"edit distance over length, {_RAPIDFUZZ}, nearest reference, micro",
    ),
    "wer": Metric(("wer",), wer_rows, _percent, "%", False, "rows that equal no reference"),
    "exact_match": Metric(("exact_match",), exact_rows, _percent, "%", True, "outer white space ignored, case kept"),
    "mean_length": Metric(("mean_length",), length_rows, _mean, "tokens", None, "start, padding and end not counted"),
}


def settings_of(metrics: Sequence[str | UserMetric]) -> dict[str, str]:
    """Say what else decides the figures, for the record.

    Args:
        metrics: names of `METRICS`, or functions.

    Returns:
        Metric name -> library, version and options; a function's module and name.

    >>> settings_of(["wer"])
    {'wer': 'rows that equal no reference'}
    """
    settings: dict[str, str] = {}
    for metric in metrics:
        if callable(metric):
            name = getattr(metric, "__name__", type(metric).__name__)
            settings[name] = f"user's function {getattr(metric, '__module__', '?')}.{name}"
        else:
            settings[metric] = choose(METRICS, metric, "metric").settings
    return settings
