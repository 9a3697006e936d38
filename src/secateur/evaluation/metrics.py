"""The metrics: each gives statistics per row whose sums make its figures, so that resampling is cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.evaluation.bleu import bleu_rows, bleu_scores, chrf_rows, chrf_scores
from secateur.evaluation.rouge import ROUGE_FIGURES, course_rows, rouge_rows
from secateur.evaluation.statistics import (
    NOVELTY_ORDERS,
    Written,
    class_rows,
    exact_rows,
    length_ratio_rows,
    length_rows,
    novelty_rows,
    per_rows,
    wer_rows,
)
from secateur.registry import choose


@dataclass(frozen=True)
class Metric:
    """How figures are made.

    Args:
        figures: names of the figures.
        statistics: outputs -> float64 (rows, k).
        aggregate: sums over rows, float64 (..., k) -> figures, float64 (..., len(figures)).
        unit: see `figures.Figure`.
        higher_is_better: see `figures.Figure`.
        settings: what else decides the figures, for the record: library, version, options.
    """

    figures: tuple[str, ...]
    statistics: Callable[[Written], np.ndarray]
    aggregate: Callable[[np.ndarray], np.ndarray]
    unit: str
    higher_is_better: bool | None
    settings: str


UserMetric = Callable[[list[str], list[list[str]]], Any]


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


# Aggregates: sums over rows -> figures


def mean(sums: np.ndarray) -> np.ndarray:
    """Divide sums by the last of them, the number of rows: float64 (..., k + 1) -> (..., k)."""
    return sums[..., :-1] / sums[..., -1:]


def _percent(sums: np.ndarray) -> np.ndarray:
    return 100.0 * mean(sums)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Divide the first half of the sums by the second, each by its own; by 1 where nothing is there to divide by."""
    half = sums.shape[-1] // 2
    return sums[..., :half] / np.maximum(sums[..., half:], 1.0)


def _percent_ratio(sums: np.ndarray) -> np.ndarray:
    half = sums.shape[-1] // 2
    return _ratio(np.concatenate([100.0 * sums[..., :half], sums[..., half:]], axis=-1))


_RAPIDFUZZ = f"rapidfuzz {version('rapidfuzz')}"
# sacrebleu's own signatures; nrefs:var says that each row is scored against as many references as it has
_BLEU = f"sacrebleu BLEU nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:{version('sacrebleu')}"
_CHRF = f"sacrebleu chrF2 nrefs:var|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version('sacrebleu')}"


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """Average F1 over the classes that occur: float64 (..., 3 x classes) -> (..., 1).

    >>> _macro_f1(np.array([2.0, 0.0, 0.0, 3.0, 1.0, 0.0, 2.0, 2.0, 0.0])).tolist()  # the third class does not occur
    [40.0]
    """
    right, references, named = np.split(sums, 3, axis=-1)
    occurs = references + named
    share = 2.0 * right / np.maximum(occurs, 1.0)
    return 100.0 * share.sum(-1, keepdims=True) / np.maximum((occurs > 0).sum(-1, keepdims=True), 1)


METRICS: dict[str, Metric] = {
    "rouge": Metric(
        ROUGE_FIGURES,
        rouge_rows,
        mean,
        "",
        True,
        f"rouge_score {version('rouge_score')}, a-z and 0-9 alone, stemmer on, F1, best reference, own sentence "
        "splitter for Lsum",
    ),
    "course_rouge_lsum": Metric(
        ("course_rouge_lsum",), course_rows, mean, "", True, f"recall of sentence LCS, {_RAPIDFUZZ}, best reference"
    ),
    "bleu": Metric(("bleu",), bleu_rows, bleu_scores, "%", True, _BLEU),
    "chrf": Metric(("chrf",), chrf_rows, chrf_scores, "%", True, _CHRF),
    "per": Metric(
        ("per",),
        per_rows,
        _percent_ratio,
        "%",
        False,
        f"edit distance over length, {_RAPIDFUZZ}, nearest reference, micro",
    ),
    "wer": Metric(("wer",), wer_rows, _percent, "%", False, "rows that equal no reference"),
    "exact_match": Metric(("exact_match",), exact_rows, _percent, "%", True, "outer white space ignored, case kept"),
    "mean_length": Metric(("mean_length",), length_rows, mean, "tokens", None, "start, padding and end not counted"),
    "length_ratio": Metric(
        ("length_ratio",),
        length_ratio_rows,
        _ratio,
        "",
        None,
        "words written over words of the references, split at white space, reference nearest in length, micro",
    ),
    "novelty": Metric(
        tuple(f"novelty_{order}" for order in NOVELTY_ORDERS),
        novelty_rows,
        _percent_ratio,
        "%",
        None,
        "n-grams written that the whole source lacks, lower-cased runs of letters and digits, every copy counts, micro",
    ),
    "accuracy": Metric(("accuracy",), exact_rows, _percent, "%", True, "rows whose class is the one that was named"),
    "macro_f1": Metric(
        ("macro_f1",),
        class_rows,
        _macro_f1,
        "%",
        True,
        "unweighted mean of 2 x right / (rows of the class + rows named so) over the classes that occur in either",
    ),
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
