"""Length ratio and novelty: what is counted, against which reference, and what sources are for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import DataError, SecateurError
from secateur.evaluation.figures import score_predictions
from secateur.evaluation.statistics import Written, length_ratio_rows, novelty_rows

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat"]), max_size=8)
NOVELTY = ("novelty_1", "novelty_2", "novelty_3", "novelty_4")


def novelty(texts: list[str], sources: list[str]) -> list[float]:
    figures = score_predictions(["novelty"], texts, [["-"]] * len(texts), sources=sources, seed=0, resamples=5)
    assert tuple(figures) == NOVELTY
    return [figures[name].value for name in NOVELTY]


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_the_nearest_reference_is_the_one_that_is_left_when_the_others_go(references: list[list[str]]) -> None:
    text = "one two three four"
    ((written, wanted),) = length_ratio_rows(Written([text], [[" ".join(words) for words in references]])).tolist()
    lengths = [len(words) for words in references]
    assert written == 4
    assert wanted in lengths
    assert all(abs(wanted - 4) < abs(length - 4) or wanted <= length for length in lengths if length != wanted)


def test_length_ratio_is_of_all_words_not_the_mean_of_ratios() -> None:
    figure = score_predictions(["length_ratio"], ["a b", "a"], [["a"], ["a b c"]], seed=0)["length_ratio"]
    assert figure.value == 3 / 4
    assert (figure.unit, figure.higher_is_better) == ("", None)


def test_length_ratio_where_the_references_hold_no_word() -> None:
    assert score_predictions(["length_ratio"], ["a b"], [[" "]], seed=0)["length_ratio"].value == 2.0
    assert score_predictions(["length_ratio"], [""], [[""]], seed=0)["length_ratio"].value == 0.0


@given(WORDS, WORDS, WORDS)
def test_what_is_copied_is_not_new(before: list[str], text: list[str], after: list[str]) -> None:
    assert novelty([" ".join(text)], [" ".join([*before, *text, *after])]) == [0.0] * 4


@given(WORDS, WORDS)
def test_longer_ngrams_are_never_less_new(text: list[str], source: list[str]) -> None:
    rows = novelty_rows(Written([" ".join(text)], [["-"]], sources=[" ".join(source)]))[0]
    old = rows[4:] - rows[:4]  # every n-gram that is there holds an (n-1)-gram that is there
    assert all(old[order] <= old[order - 1] for order in (1, 2, 3))


def test_novelty_by_hand() -> None:
    # the cat sat on a mat: "a" is new; of five pairs "cat sat" alone is there
    assert novelty(["The cat sat; on a mat."], ["the black Cat sat (mat) on"]) == pytest.approx(
        [100 * 1 / 6, 100 * 4 / 5, 100.0, 100.0]
    )


def test_an_ngram_counts_as_often_as_it_is_written_and_rows_weigh_by_their_length() -> None:
    assert novelty(["new new new old", "old"], ["old", "old"])[0] == pytest.approx(100 * 3 / 5)


def test_outputs_too_short_for_an_ngram_have_nothing_new() -> None:
    assert novelty(["", "a b"], ["x", "x"]) == [100.0, 100.0, 0.0, 0.0]


def test_sources_must_be_known_and_as_many_as_outputs() -> None:
    with pytest.raises(SecateurError, match="metric novelty: needs the sources"):
        score_predictions(["novelty"], ["a"], [["a"]], seed=0)
    with pytest.raises(DataError, match="2 predictions and 1 sources"):
        score_predictions(["wer"], ["a", "b"], [["a"], ["b"]], sources=["a"], seed=0)
