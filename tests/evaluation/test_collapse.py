"""Collapsed outputs are seen, and right ones are not."""

from __future__ import annotations

import pytest

from secateur.evaluation.collapse import Collapse, repeats, signs_of_collapse
from secateur.evaluation.generate import Prediction
from secateur.tasks.cmudict import load_cmudict


@pytest.mark.parametrize(
    "text",
    [
        "the the the the the the the the",
        "a bill to to to to to to to",
        "the , the . the the and the the",
        "to amend the act to amend the act to amend the act",
        "T AH T AH T AH T AH N",
        "x " * 1000,
    ],
)
def test_repetition_is_seen(text: str) -> None:
    assert repeats(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the the the",
        "M IH S IH S IH P IY",
        "a bill to amend the act and to repeal the act and for other purposes",
        "one two three four five six seven eight",
    ],
)
def test_right_outputs_are_not_flagged(text: str) -> None:
    assert not repeats(text)


def test_no_real_pronunciation_is_flagged() -> None:
    rows = [text for row in load_cmudict("test")["phonemes"] for text in row]
    assert sum(len(text.split()) >= 8 for text in rows) > 500
    assert not any(map(repeats, rows))


def test_counts() -> None:
    predictions = [
        Prediction("", 0, False),
        Prediction(" ", 1, True),
        Prediction("a " * 8, 8, True),
        Prediction("b", 1, False),
    ]
    assert signs_of_collapse(predictions) == Collapse(rows=4, empty=2, repeated=1, truncated=2)
    assert signs_of_collapse([]) == Collapse(0, 0, 0, 0)
