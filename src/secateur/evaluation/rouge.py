"""Per-row statistics of summaries: ROUGE, and the score of the report's course."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq

from secateur.errors import DataError
from secateur.evaluation.statistics import Written, with_count

ROUGE_FIGURES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_WORD = re.compile(r"\w")
_READ = re.compile(r"[a-z0-9]", re.IGNORECASE | re.ASCII)  # what rouge_score makes words of
_BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[^\sa-z])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:(?:[A-Za-z]\.)+|(?:Mr|Mrs|Ms|Dr|Prof|St|Sen|Rep|Gov|Gen|No|Nos|Sec|Secs|Art|Fig|Vol|Inc|Corp|Ltd|Co|"
    r"Jr|Sr|vs|cf|etc|al|approx)\.)$"
)


def split_sentences(text: str) -> list[str]:
    r"""Split a text into sentences, without a model to download.

    A sentence ends at a line break, or at `.`, `!` or `?` followed by white space and anything but a lower-case letter;
    not after an initial ("U.S.") or a usual abbreviation ("Sec.", "No.").

    Args:
        text: any.

    Returns:
        The sentences, stripped, none of them empty.

    >>> split_sentences("Amends Sec. 2 of the U.S. Code. It is short.\nEnd")
    ['Amends Sec. 2 of the U.S. Code.', 'It is short.', 'End']
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        for boundary in _BOUNDARY.finditer(line):
            closed = not boundary[0][0].isspace()  # a quotation mark or bracket: 'She said "No." He left.'
            if closed or not _ABBREVIATION.search(line[start : boundary.start()]):
                sentences.append(line[start : boundary.end()].strip())
                start = boundary.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk: half a second

    return RougeScorer(list(ROUGE_FIGURES), use_stemmer=True)


def rouge_rows(written: Written) -> np.ndarray:
    """Score F1 of ROUGE-1, -2, -L and -Lsum per row; of several references the best, for each figure by itself.

    Source: Lin 2004, ROUGE, as the package rouge_score computes it. It needs a line break between sentences for Lsum.

    Args:
        written: outputs and references.

    Returns:
        float64 (rows, 5): the four scores between 0 and 1, and 1.

    Raises:
        DataError: the package reads nothing of any reference, for they are in another script.

    >>> rouge_rows(Written(["the cat sat"], [["the cat sat"]])).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    scorer = _rouge_scorer()
    everything = [text for texts in written.references for text in texts]
    if any(map(_WORD.search, everything)) and not any(map(_READ.search, everything)):
        raise DataError(
            "rouge reads the letters a to z and digits alone, and no reference has any. Use chrf or bleu in "
            "evaluation.metrics."
        )
    rows = np.zeros((len(written.texts), len(ROUGE_FIGURES)))
    for row, text, references in zip(rows, written.texts, written.references, strict=True):
        prediction = "\n".join(split_sentences(text))
        for reference in references:
            scores = scorer.score("\n".join(split_sentences(reference)), prediction)
            np.maximum(row, [scores[name].fmeasure for name in ROUGE_FIGURES], out=row)
    return with_count(rows)


def course_score(prediction: str, reference: str) -> float:
    """Score as the report's course does: how much of the reference's sentences the output's best sentences repeat.

    In both texts commas become full stops; the texts are split at full stops; sentences are stripped, lower-cased and
    split at white space. For each reference sentence the longest common subsequence with its best output sentence is
    taken; their sum over the reference's number of words is the score: a recall, so longer outputs score higher.

    Args:
        prediction: the output.
        reference: the right output.

    Returns:
        Between 0 and 1; 0 for a reference without words.

    >>> course_score("The cat, it sat.", "the cat sat. it sat")
    0.8
    """
    predicted = _course_sentences(prediction)
    wanted = _course_sentences(reference)
    num_words = sum(map(len, wanted))
    if num_words == 0:
        return 0.0
    found = sum(max((int(LCSseq.similarity(words, other)) for other in predicted), default=0) for words in wanted)
    return found / num_words


def _course_sentences(text: str) -> list[list[str]]:
    return [sentence.strip().lower().split() for sentence in text.replace(",", ".").split(".")]


def course_rows(written: Written) -> np.ndarray:
    """Give the course's score per row, float64 (rows, 2): the score of the best reference, and 1."""
    scores = [
        max(course_score(text, reference) for reference in references)
        for text, references in zip(written.texts, written.references, strict=True)
    ]
    return with_count(np.array(scores)[:, None])
