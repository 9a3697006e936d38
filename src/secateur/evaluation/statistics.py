"""Per-row statistics of texts: edit distances, equality, length. Their sums over rows make the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from secateur.errors import SecateurError


@dataclass(frozen=True)
class Written:
    """What metrics compare.

    Args:
        texts: one output per row.
        references: the right outputs of each row, at least one each.
        num_tokens: tokens of each output, or None when only texts are known.
    """

    texts: Sequence[str]
    references: Sequence[Sequence[str]]
    num_tokens: Sequence[int] | None = None


def with_count(values: np.ndarray) -> np.ndarray:
    """Append a column of ones, whose sum is the number of rows: float64 (rows, k) -> (rows, k + 1).

    >>> with_count(np.array([[5.0]])).tolist()
    [[5.0, 1.0]]
    """
    return np.concatenate([values, np.ones((len(values), 1))], axis=1)


def edit_distance(prediction: str, references: Sequence[str]) -> tuple[int, int]:
    """Count the edits from an output to its nearest reference; tokens are what white space separates.

    Args:
        prediction: the output.
        references: at least one; the nearest has the smallest distance over length, among equals the longest.

    Returns:
        The distance (insertions, deletions and substitutions cost 1) and the length of the reference that was chosen.

    >>> edit_distance("T AH M EY T OW", ["T AH M EY T OW", "T AH M AA T OW"])
    (0, 6)
    """
    tokens = prediction.split()
    found = []
    for reference in references:
        wanted = reference.split()
        distance = int(Levenshtein.distance(tokens, wanted))
        rate = distance / len(wanted) if wanted else float("inf") if distance else 0.0
        found.append((rate, -len(wanted), distance))
    _, negative_length, distance = min(found)
    return distance, -negative_length


def per_rows(written: Written) -> np.ndarray:
    """Give float64 (rows, 2): edit distance to the nearest reference, and that reference's length."""
    pairs = zip(written.texts, written.references, strict=True)
    return np.array([edit_distance(text, references) for text, references in pairs], dtype=np.float64)


def wer_rows(written: Written) -> np.ndarray:
    """Give float64 (rows, 2): 1 where the output equals no reference, token by token, else 0; and 1.

    This is the grapheme-to-phoneme field's word error rate: the share of WORDS (rows) with any error, not the
    speech field's edit distance over words.
    """
    wrong = [
        text.split() not in [reference.split() for reference in references]
        for text, references in zip(written.texts, written.references, strict=True)
    ]
    return with_count(np.array(wrong, dtype=np.float64)[:, None])


def exact_rows(written: Written) -> np.ndarray:
    """Give float64 (rows, 2): 1 where the output equals a reference (outer white space aside), else 0; and 1."""
    right = [
        text.strip() in [reference.strip() for reference in references]
        for text, references in zip(written.texts, written.references, strict=True)
    ]
    return with_count(np.array(right, dtype=np.float64)[:, None])


def length_rows(written: Written) -> np.ndarray:
    """Count tokens.

    Args:
        written: what was written.

    Returns:
        float64 (rows, 2): tokens written; and 1.

    Raises:
        SecateurError: only texts are known.
    """
    if written.num_tokens is None:
        raise SecateurError("metric mean_length: needs predictions with their number of tokens; these are texts only.")
    return with_count(np.array(written.num_tokens, dtype=np.float64)[:, None])
