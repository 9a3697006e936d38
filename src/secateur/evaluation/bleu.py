"""Per-row statistics of BLEU and chrF, as the package sacrebleu counts them, and the scores that their sums make.

Source: Papineni et al. 2002, P02-1040 (BLEU); Popovic 2015, W15-3049 (chrF); Post 2018, W18-6319 (sacrebleu).

sacrebleu scores a corpus from counts per row, but shows only the score. Its own significance tests read and sum these
counts through the same two methods that are called here; tests hold the result equal to its `corpus_score`.
"""

from __future__ import annotations

from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np

from secateur.evaluation.statistics import Written


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU  # a quarter of a second

    return BLEU(force=True)  # it would else speak up about texts that look tokenized already; the score is the same


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def bleu_rows(written: Written) -> np.ndarray:
    """Count a row's n-grams for BLEU; of several references, each n-gram's largest count is matched against.

    Args:
        written: outputs and references.

    Returns:
        float64 (rows, 10): words written, words of the reference nearest in length (of two, the shorter), n-grams that
        match for n = 1 to 4, n-grams written for n = 1 to 4.

    >>> bleu_rows(Written(["the cat sat"], [["the cat", "a cat sat"]])).tolist()
    [[3.0, 3.0, 3.0, 2.0, 0.0, 0.0, 3.0, 2.0, 1.0, 0.0]]
    """
    return _rows(_bleu(), written)


def chrf_rows(written: Written) -> np.ndarray:
    """Count a row's character n-grams for chrF, against the reference that gives the row the best score.

    Args:
        written: outputs and references.

    Returns:
        float64 (rows, 18): for n = 1 to 6, n-grams of the output, of the reference, and those that match.

    >>> chrf_rows(Written(["ab"], [["abc"]]))[0, :6].tolist()
    [2.0, 3.0, 2.0, 1.0, 2.0, 1.0]
    """
    return _rows(_chrf(), written)


def bleu_scores(sums: np.ndarray) -> np.ndarray:
    """Make BLEU of summed counts, float64 (..., 10) -> (..., 1), 0 to 100; 0 where nothing matches."""
    return _scores(_bleu(), sums)


def chrf_scores(sums: np.ndarray) -> np.ndarray:
    """Make chrF of summed counts, float64 (..., 18) -> (..., 1), 0 to 100; 0 where nothing matches."""
    return _scores(_chrf(), sums)


def _rows(metric: Any, written: Written) -> np.ndarray:
    streams = list(zip_longest(*written.references))  # one stream for each place; None where a row has fewer
    return np.array(metric._extract_corpus_statistics(list(written.texts), streams), dtype=np.float64)


def _scores(metric: Any, sums: np.ndarray) -> np.ndarray:
    flat = sums.reshape(-1, sums.shape[-1]).tolist()
    scores = [metric._compute_score_from_stats(row).score for row in flat]
    return np.array(scores, dtype=np.float64).reshape(*sums.shape[:-1], 1)
