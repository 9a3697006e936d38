"""Per-row statistics of texts: edit distances, equality, length, novelty. Their sums over rows make the figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from secateur.errors import SecateurError
from secateur.tasks.pairs import Source, texts_of

NOVELTY_ORDERS = (1, 2, 3, 4)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Written:
    """What metrics compare.

    Args:
        texts: one output per row.
        references: the right outputs of each row, at least one each.
        num_tokens: tokens of each output, or None when only texts are known.
        sources: what each output was written from, without the task's prefix; None when that is not known.
    """

    texts: Sequence[str]
    references: Sequence[Sequence[str]]
    num_tokens: Sequence[int] | None = None
    sources: Sequence[Source] | None = None


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


def class_rows(written: Written) -> np.ndarray:
    """Count, class by class, what macro-F1 is made of.

    The classes are those that occur in the references or were named. One that occurs in neither, in all rows or in a
    resample of them, has no F1 and is left out of the mean; one that was never named, or never rightly, has 0. This is
    what scikit-learn's `f1_score(average="macro")` gives.

    Args:
        written: the classes that were named, and one reference a row.

    Returns:
        float64 (rows, 3 x classes), the classes in the order of their names: 1 where the row's class is this one and
        was named; 1 where it is this one; 1 where this one was named.

    >>> class_rows(Written(["a", "b"], [["a"], ["a"]])).tolist()
    [[1.0, 0.0, 1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]]
    """
    wanted = [row[0].strip() for row in written.references]
    named = [text.strip() for text in written.texts]
    numbers = {name: number for number, name in enumerate(sorted({*wanted, *named}))}
    one_hot = np.eye(len(numbers))
    references = one_hot[[numbers[name] for name in wanted]]
    predictions = one_hot[[numbers[name] for name in named]]
    return np.concatenate([references * predictions, references, predictions], axis=1)


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


def length_ratio_rows(written: Written) -> np.ndarray:
    """Count words, which white space separates, in the output and in the reference that is nearest to it in length.

    Of several references the nearest is taken, of two that are equally near the shorter, as BLEU does: a longer or
    shorter reference that is also right says nothing against the output.

    Args:
        written: outputs and references.

    Returns:
        float64 (rows, 2): words written; words of the reference.

    >>> length_ratio_rows(Written(["a b c"], [["a b c d e", "a", "a b"]])).tolist()
    [[3.0, 2.0]]
    """
    rows = []
    for text, references in zip(written.texts, written.references, strict=True):
        length = len(text.split())
        wanted = [len(reference.split()) for reference in references]
        rows.append((length, min(wanted, key=lambda words, length=length: (abs(words - length), words))))
    return np.array(rows, dtype=np.float64)


def novelty_rows(written: Written) -> np.ndarray:
    """Count the n-grams of words that an output has and its source has not.

    Words are runs of letters, digits and underscores, in lower case, so that neither punctuation nor a capital makes an
    n-gram new. An n-gram that is written twice counts twice. The source counts whole, also where it was cut for the
    model.

    Source: See et al. 2017, P17-1099 (novel n-grams). Differs: over all rows together, not per row.

    Args:
        written: outputs and sources.

    Returns:
        float64 (rows, 8): new n-grams for n = 1 to 4; n-grams written for n = 1 to 4.

    Raises:
        SecateurError: the sources are not known.

    >>> novelty_rows(Written(["A cat sat."], [["-"]], sources=["a dog sat, a cat ran"])).tolist()
    [[0.0, 1.0, 1.0, 0.0, 3.0, 2.0, 1.0, 0.0]]
    """
    if written.sources is None:
        raise SecateurError("metric novelty: needs the sources that the predictions were written from. Give them too.")
    rows = []
    for text, source in zip(written.texts, written.sources, strict=True):
        words, known = _WORD.findall(text.lower()), [_WORD.findall(part.lower()) for part in texts_of(source)]
        ngrams = [_ngrams(words, order) for order in NOVELTY_ORDERS]
        there = [{ngram for part in known for ngram in _ngrams(part, order)} for order in NOVELTY_ORDERS]
        new = [sum(ngram not in old for ngram in some) for some, old in zip(ngrams, there, strict=True)]
        rows.append((*new, *map(len, ngrams)))
    return np.array(rows, dtype=np.float64)


def _ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(order)), strict=False))
