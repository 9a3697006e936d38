"""BLEU and chrF are sacrebleu's own, whatever the number of references."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from secateur.evaluation.bleu import bleu_rows, bleu_scores, chrf_rows, chrf_scores
from secateur.evaluation.figures import score_predictions
from secateur.evaluation.metrics import METRICS
from secateur.evaluation.statistics import Written

WORDS = ["the", "The", "cat", "sat,", "on", "it's", "1,000", "ü", "&amp;", '"mat".', "-"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
ROWS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=8)
OURS = {"bleu": (bleu_rows, bleu_scores), "chrf": (chrf_rows, chrf_scores)}


def theirs(name: str, texts: list[str], references: list[list[str]]) -> tuple[float, str]:
    """sacrebleu's score and signature, by the calls that its own documentation shows."""
    metric = {"bleu": BLEU, "chrf": CHRF}[name]()
    score = metric.corpus_score(texts, list(zip_longest(*references))).score
    return score, str(metric.get_signature())


@pytest.mark.parametrize("name", OURS)
@given(rows=ROWS)
def test_the_score_of_a_corpus_is_sacrebleus(name: str, rows: list[tuple[str, list[str]]]) -> None:
    texts, references = [text for text, _ in rows], [references for _, references in rows]
    figure = score_predictions([name], texts, references, seed=0, resamples=5)[name]
    assert figure.value == theirs(name, texts, references)[0]


@pytest.mark.parametrize("name", OURS)
@given(rows=ROWS, seed=st.integers(0, 99))
def test_sums_over_drawn_rows_score_as_a_corpus_of_these_rows(
    name: str, rows: list[tuple[str, list[str]]], seed: int
) -> None:
    statistics, score = OURS[name]
    drawn = np.random.default_rng(seed).integers(0, len(rows), size=(2, len(rows)))
    table = statistics(Written([text for text, _ in rows], [references for _, references in rows]))
    expected = [theirs(name, [rows[i][0] for i in one], [rows[i][1] for i in one])[0] for one in drawn]
    assert score(table[drawn].sum(axis=1)).tolist() == [[value] for value in expected]


@pytest.mark.parametrize("name", OURS)
def test_the_record_ends_with_sacrebleus_signature(name: str) -> None:
    _, signature = theirs(name, ["a", "b"], [["a"], ["b", "c"]])
    assert "nrefs:var" in signature
    assert METRICS[name].settings.endswith(f" {signature}")


@pytest.mark.parametrize("name", OURS)
def test_the_best_and_the_worst(name: str) -> None:
    rows = ["the cat sat on the mat", "dogs bark all night long"]
    figures = score_predictions([name], rows, [[row] for row in rows], seed=0)
    assert figures[name].value == pytest.approx(100.0)
    assert (figures[name].unit, figures[name].higher_is_better) == ("%", True)
    assert score_predictions([name], ["", ""], [["a"], ["b"]], seed=0)[name].value == 0.0


def test_many_texts_that_look_tokenized_are_no_reason_to_speak_up(caplog: pytest.LogCaptureFixture) -> None:
    score_predictions(["bleu"], ["a ."] * 200, [["a ."]] * 200, seed=0, resamples=5)
    assert not caplog.records
