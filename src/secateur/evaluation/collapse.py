"""Signs that a model no longer writes: outputs that are empty, repeat themselves, or never end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.evaluation.generate import Prediction

_MIN_WORDS = 8  # shorter outputs may repeat by nature
_MAX_PERIOD = 8  # the longest phrase that is looked for
_MIN_COPIES = 3  # of a phrase on end: "M IH S IH S IH P IY" (Mississippi) has two and a half and is right


@dataclass(frozen=True)
class Collapse:
    """How many of the rows show a sign.

    Args:
        rows: all of them.
        empty: nothing but white space.
        repeated: see `repeats`.
        truncated: no end token within the allowed tokens.
    """

    rows: int
    empty: int
    repeated: int
    truncated: int


def signs_of_collapse(predictions: Sequence[Prediction]) -> Collapse:
    """Count the outputs that show a sign of collapse.

    Args:
        predictions: any number.

    Returns:
        The counts; one output may be counted under several.

    >>> signs_of_collapse([Prediction("", 0, False), Prediction("no " * 9, 9, True)])
    Collapse(rows=2, empty=1, repeated=1, truncated=1)
    """
    return Collapse(
        rows=len(predictions),
        empty=sum(not prediction.text.strip() for prediction in predictions),
        repeated=sum(repeats(prediction.text) for prediction in predictions),
        truncated=sum(prediction.truncated for prediction in predictions),
    )


def repeats(text: str) -> bool:
    """Say whether an output repeats itself.

    It does when it has at least 8 words (what white space separates), and more than half of them are one word, or at
    least half of them are one phrase of up to 8 words on end, three times or more.

    Args:
        text: an output.

    Returns:
        True when it repeats itself.

    >>> repeats("to the effects of to the effects of to the effects of"), repeats("M IH S IH S IH P IY")
    (True, False)
    """
    words = text.split()
    if len(words) < _MIN_WORDS:
        return False
    if 2 * Counter(words).most_common(1)[0][1] > len(words):
        return True
    return any(
        stretch >= _MIN_COPIES * period and 2 * stretch >= len(words)
        for period in range(1, _MAX_PERIOD + 1)
        for stretch in (_longest_stretch(words, period),)
    )


def _longest_stretch(words: Sequence[str], period: int) -> int:
    """Count the words of the longest stretch in which every word equals the one `period` places before it."""
    longest = run = 0
    for place in range(period, len(words)):
        run = run + 1 if words[place] == words[place - period] else 0
        longest = max(longest, run)
    return longest + period if longest else 0
