"""Figures agree with figures made by hand, and intervals behave as intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from secateur.errors import DataError, SecateurError
from secateur.evaluation.figures import Figure, score_predictions
from secateur.evaluation.generate import Prediction
from secateur.evaluation.metrics import METRICS, check_metrics, settings_of
from secateur.recipe import names

TEXTS = st.lists(st.sampled_from(["AH", "B", "K", "T"]), max_size=6).map(" ".join)
ROWS = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=12)
SUMMARIES = ["the cat sat on the mat.", "dogs bark at night, cats do not.", "nothing alike"]
REFERENCES = [["the cat sat on the mat."], ["the dogs bark. cats sleep at night.", "no."], ["something else"]]


def _values(metric: object, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    figures = score_predictions([metric], predictions, references, seed=0, resamples=20)  # type: ignore[list-item]
    return {name: figure.value for name, figure in figures.items()}


def test_table_holds_the_words_of_recipes() -> None:
    assert tuple(METRICS) == names.words(names.Metric)


@given(ROWS)
def test_identical_outputs_have_no_error(rows: list[tuple[str, list[str]]]) -> None:
    references = [references for _, references in rows]
    outputs = [references[-1] for _, references in rows]
    assert _values("per", outputs, references) == {"per": 0.0}
    assert _values("wer", outputs, references) == {"wer": 0.0}
    assert _values("exact_match", outputs, references) == {"exact_match": 100.0}


@given(ROWS)
def test_word_errors_and_exact_matches_are_all_rows(rows: list[tuple[str, list[str]]]) -> None:
    outputs, references = [text for text, _ in rows], [references for _, references in rows]
    wrong = _values("wer", outputs, references)["wer"]
    assert wrong + _values("exact_match", outputs, references)["exact_match"] == pytest.approx(100.0)
    assert (wrong == 0.0) == (_values("per", outputs, references)["per"] == 0.0)


def test_phoneme_errors_by_hand() -> None:
    outputs = ["T AH M EY T OW", "K AE", "AH B", ""]
    references = [
        ["T AH M AA T OW", "T AH M EY D OW Z"],  # 1 of 6 is less than 2 of 7
        ["K AE T", "K"],  # 1 of 3 is less than 1 of 1
        ["AH", "AH B B", "B AH B K"],  # 1 of 1, 1 of 3, 2 of 4: the second
        ["AH B", "AH B AH K"],  # 1 both: of equals the longer
    ]
    assert _values("per", outputs, references)["per"] == pytest.approx(100 * (1 + 1 + 1 + 4) / (6 + 3 + 3 + 4))
    assert _values("wer", outputs, references)["wer"] == 100.0


def test_phoneme_errors_are_averaged_over_phonemes_not_rows() -> None:
    assert _values("per", ["B", "AH " * 9], [["AH"], ["AH " * 9]])["per"] == pytest.approx(10.0)


def test_phoneme_errors_with_empty_references() -> None:
    assert _values("per", [""], [[""]])["per"] == 0.0
    assert _values("per", ["AH B"], [[""]])["per"] == 200.0  # two errors where one token is counted
    assert _values("per", ["AH B"], [["", "K K"]])["per"] == 100.0


def test_white_space_does_not_matter_to_phonemes() -> None:
    assert _values("wer", [" AH  B\n"], [["AH B"]])["wer"] == 0.0


def test_rouge_is_the_package_with_the_best_reference() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    expected = {
        name: sum(
            max(scorer.score(reference, text)[name].fmeasure for reference in row)
            for text, row in zip(SUMMARIES, REFERENCES, strict=True)
        )
        / len(SUMMARIES)
        for name in ("rouge1", "rouge2", "rougeL")
    }
    values = _values("rouge", SUMMARIES, REFERENCES)
    assert list(values) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_rouge_lsum_sees_sentences() -> None:
    # The same two sentences in the other order: every reference sentence is found whole, though not in sequence.
    values = _values("rouge", ["Cats sleep. Dogs bark."], [["Dogs bark. Cats sleep."]])
    assert values["rougeLsum"] == 1.0
    assert values["rougeL"] == 0.5


def test_mean_length_counts_tokens() -> None:
    predictions = [Prediction("a", 3, False), Prediction("b", 8, True)]
    figures = score_predictions(["mean_length"], predictions, [["a"], ["b"]], seed=0)
    assert figures["mean_length"].value == 5.5
    assert figures["mean_length"].higher_is_better is None
    with pytest.raises(SecateurError, match="needs predictions with their number of tokens"):
        score_predictions(["mean_length"], ["a"], [["a"]], seed=0)


def test_every_figure_lies_in_its_interval_and_repeats() -> None:
    predictions = [Prediction(text, len(text), False) for text in SUMMARIES * 20]
    rows = (list(METRICS), predictions, REFERENCES * 20)
    sources = ["the cat sat where dogs bark"] * len(predictions)
    first = score_predictions(*rows, sources=sources, seed=3)
    assert first == score_predictions(*rows, sources=sources, seed=3)
    assert first != score_predictions(*rows, sources=sources, seed=4)
    assert len(first) == sum(len(metric.figures) for metric in METRICS.values()) == 18
    for figure in first.values():
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
    assert first["rouge1"].low != first["rouge1"].high


def test_a_figure_does_not_depend_on_what_else_is_measured() -> None:
    alone = score_predictions(["wer"], SUMMARIES, REFERENCES, seed=3)
    together = score_predictions(["rouge", "per", "wer"], SUMMARIES, REFERENCES, seed=3)
    assert together["wer"] == alone["wer"]


def _half(predictions: list[str], references: list[list[str]]) -> list[float]:
    assert isinstance(references[0], list)
    return [0.0 if number % 2 else 1.0 for number in range(len(predictions))]


def test_a_users_rows_get_an_interval() -> None:
    figure = score_predictions([_half], ["x"] * 40, [["y"]] * 40, seed=0)["_half"]
    assert figure.value == 0.5
    assert figure.low is not None
    assert figure.high is not None
    assert 0.3 < figure.low < 0.5 < figure.high < 0.7
    assert (figure.unit, figure.higher_is_better) == ("", None)


def test_a_users_one_number_has_no_interval_and_may_carry_its_unit() -> None:
    def seconds(predictions: list[str], references: list[list[str]]) -> float:
        return 7

    seconds.unit = "s"  # type: ignore[attr-defined]
    seconds.higher_is_better = False  # type: ignore[attr-defined]
    assert score_predictions([seconds], ["x", "z"], [["y"]] * 2, seed=0) == {
        "seconds": Figure(7.0, None, None, "s", False)
    }


def test_a_users_dict_gives_several_figures() -> None:
    def both(predictions: list[str], references: list[list[str]]) -> dict[str, object]:
        return {"first": [1, 3], "second": np.float32(0.5)}

    figures = score_predictions([both, "wer"], ["x", "z"], [["y"]] * 2, seed=0)
    assert {name: figure.value for name, figure in figures.items()} == {"first": 2.0, "second": 0.5, "wer": 100.0}


@pytest.mark.parametrize(
    ("given_back", "message"),
    [
        ([1.0], r"must be one number or 3 numbers, one per row; its shape is \(1,\)"),
        ([[1.0]] * 3, r"its shape is \(3, 1\)"),
        ([1.0, math.nan, 2.0], "not a finite number in row 2"),
        (math.inf, "not a finite number"),
        ("good", "must be numbers, and is str"),
        (["a", "b", "c"], "must be numbers, and is list"),
    ],
)
def test_what_a_users_function_must_not_give(given_back: object, message: str) -> None:
    def mine(predictions: list[str], references: list[list[str]]) -> object:
        return given_back

    with pytest.raises(SecateurError, match=f"metric mine: mine.*{message}"):
        score_predictions([mine], SUMMARIES, REFERENCES, seed=0)


def test_two_figures_of_one_name_are_refused() -> None:
    with pytest.raises(SecateurError, match="two give a figure named wer"):
        score_predictions(["wer", "wer"], ["x"], [["y"]], seed=0)


def test_unknown_and_missing_metrics_are_refused_with_what_there_is() -> None:
    with pytest.raises(SecateurError, match='Did you mean "rouge"'):
        check_metrics([_half, "rogue"])
    with pytest.raises(SecateurError, match=r"none given\. There are: rouge"):
        check_metrics([])
    check_metrics([*METRICS, _half])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no predictions"),
        (["a"], [["a"], ["b"]], "1 predictions and 2 rows"),
        (["a"], [[]], "row 1: references must be a list"),
        (["a"], ["a"], "row 1: references must be a list"),
    ],
)
def test_rows_that_do_not_fit_are_refused(predictions: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score_predictions(["wer"], predictions, references, seed=0)


def test_settings_pin_library_and_version() -> None:
    settings = settings_of(["rouge", "per", _half])
    assert settings["rouge"].startswith("rouge_score 0.")
    assert "stemmer on" in settings["rouge"]
    assert settings["_half"].endswith("._half")
