"""Sentences, and the course's score worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import DataError
from secateur.evaluation.rouge import course_rows, course_score, rouge_rows, split_sentences
from secateur.evaluation.statistics import Written


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("One", ["One"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Version 1.5 is out. It works", ["Version 1.5 is out.", "It works"]),
        ("See e.g. Dr. Smith of the U.S. Army, No. 5.", ["See e.g. Dr. Smith of the U.S. Army, No. 5."]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("line one\nline two\n\n", ["line one", "line two"]),
        ("stops. but goes on", ["stops. but goes on"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aB .!?\n\"'5", max_size=60))
def test_splitting_loses_nothing_but_white_space(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("The cat sat on a mat.", "the cat sat. it purred", 3 / 5),
        ("a b, c d", "a b c d", 2 / 4),  # the comma cuts the output: its best sentence has two of the four
        ("a b c d", "a b, c d", 4 / 4),  # the comma cuts the reference: both halves are in the one sentence
        ("d c b a", "a b c d", 1 / 4),  # a subsequence keeps the order
        ("a a a a", "a b", 1 / 2),
        ("x", "", 0.0),
        ("x", " ., . ", 0.0),
        ("", "a b", 0.0),
        ("v1.5 out", "v1.5 out", 3 / 3),  # "v1" and "5 out"
    ],
)
def test_course_score_by_hand(prediction: str, reference: str, score: float) -> None:
    assert course_score(prediction, reference) == pytest.approx(score)


@given(st.text(alphabet="abc ,.", max_size=30), st.text(alphabet="abc ,.", max_size=30))
def test_course_score_is_a_recall(prediction: str, reference: str) -> None:
    score = course_score(prediction, reference)
    assert 0.0 <= score <= 1.0
    assert course_score(prediction + "." + reference, reference) >= score
    assert course_score(reference, reference) in (0.0, 1.0)


def test_course_rows_take_the_best_reference() -> None:
    assert course_rows(Written(["a b"], [["a c", "a b", ""]])).tolist() == [[1.0, 1.0]]


def test_texts_in_another_script_are_refused_and_not_scored_0() -> None:
    with pytest.raises(DataError, match=r"letters a to z and digits alone.*chrf or bleu"):
        rouge_rows(Written(["кошка сидит"], [["кошка сидит"]]))
    assert rouge_rows(Written(["кошка cat", "кошка"], [["cat"], ["кошка"]]))[0, 0] == 1.0
    assert not rouge_rows(Written(["a"], [["..."]]))[0, 0]
