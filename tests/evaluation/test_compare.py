"""A paired bootstrap: symmetric, silent between equals, sharper than two intervals side by side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import DataError
from secateur.evaluation.compare import BETTER, OPEN, WORSE, check_same_rows, compare_samples
from secateur.evaluation.figures import Sample, as_written, resample
from secateur.tasks.pairs import Pairs

NUM_ROWS = 60
METRICS = ["per", "exact_match", "length_ratio"]
REFERENCES = [["AH B K T"]] * NUM_ROWS
TEXTS = st.lists(st.sampled_from(["AH B K T", "AH B", "K T AH"]), min_size=NUM_ROWS, max_size=NUM_ROWS)


def samples(texts: list[str], seed: int = 0) -> dict[str, Sample]:
    return resample(METRICS, as_written(texts, REFERENCES), seed=seed, resamples=200)


@given(TEXTS)
def test_outputs_do_not_differ_from_themselves(texts: list[str]) -> None:
    for name, found in compare_samples(samples(texts), samples(texts)).items():
        assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
        assert found.verdict == (None if name == "length_ratio" else OPEN)


@given(TEXTS, TEXTS)
def test_the_other_way_round_is_the_opposite(one: list[str], other: list[str]) -> None:
    there, back = compare_samples(samples(one), samples(other)), compare_samples(samples(other), samples(one))
    opposite = {BETTER: WORSE, WORSE: BETTER, OPEN: OPEN, None: None}
    for name, found in there.items():
        assert found.low is not None and found.high is not None
        assert found.low <= found.value <= found.high
        assert (back[name].value, back[name].verdict) == (-found.value, opposite[found.verdict])
        assert (back[name].low, back[name].high) == pytest.approx((-found.high, -found.low))


def test_a_verdict_follows_the_direction_of_its_figure() -> None:
    good, bad = ["AH B K T"] * NUM_ROWS, ["AH"] * NUM_ROWS
    found = compare_samples(samples(bad), samples(good))
    assert {name: item.verdict for name, item in found.items()} == {
        "per": BETTER,
        "exact_match": BETTER,
        "length_ratio": None,
    }
    assert found["per"].value < 0 < found["exact_match"].value


def test_pairs_tell_what_two_intervals_cannot() -> None:
    # Half of the rows are wrong in both; the second mends six of them. Each figure alone is uncertain by as much.
    first = ["AH"] * 30 + ["AH B K T"] * 30
    second = ["AH B K T"] * 6 + first[6:]
    one, other = samples(first), samples(second)
    assert one["exact_match"].figure().high > other["exact_match"].figure().low  # type: ignore[operator]
    assert compare_samples(one, other)["exact_match"].verdict == BETTER


def test_chance_is_not_taken_for_a_difference() -> None:
    generator, told = np.random.default_rng(0), 0
    for seed in range(100):
        one, other = ([["AH B K T", "AH"][right] for right in generator.integers(0, 2, NUM_ROWS)] for _ in range(2))
        told += compare_samples(samples(one, seed), samples(other, seed))["exact_match"].verdict != OPEN
    # 5 of 100 are expected where nothing differs; 12 or more have a probability of 0.4 %
    assert told < 12


def test_one_number_for_all_rows_has_a_difference_and_no_verdict() -> None:
    def seconds(predictions: list[str], references: list[list[str]]) -> float:
        return float(predictions[0])

    one, other = (resample([seconds], as_written([text], [["x"]]), seed=0) for text in ("1", "3"))
    found = compare_samples(one, other)["seconds"]
    assert (found.value, found.low, found.high, found.verdict) == (2.0, None, None, None)


ROWS = Pairs(("s1", "s2"), (("r1",), ("r2", "r3")))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Pairs(("s1", "x"), ROWS.references), "row 2 has the source 's2' in A, and 'x' in B"),
        (Pairs(ROWS.sources, (("r1",), ("r3", "r2"))), r"row 2 has the references \['r2', 'r3'\] in A, and \['r3'"),
        (Pairs(("x", "s2"), (("y",), ("y",))), "row 1 has the source"),
        (Pairs(("s1",), (("r1",),)), "A has 2 rows, and B has 1"),
    ],
)
def test_other_rows_are_refused_by_the_first_that_differs(other: Pairs, message: str) -> None:
    check_same_rows(["A", "A again"], [ROWS, ROWS])
    with pytest.raises(DataError, match=f"^A and B cannot be compared: {message}"):
        check_same_rows(["A", "again", "B"], [ROWS, ROWS, other])


@given(st.text("ab", min_size=0, max_size=200), st.text("ab", max_size=100), st.text("ab", max_size=100))
def test_long_texts_are_shown_where_they_part(same: str, mine: str, theirs: str) -> None:
    one, other = f"{same}c{mine}", f"{same}d{theirs}"
    with pytest.raises(DataError) as told:
        check_same_rows(["A", "B"], [Pairs((one,), (("x",),)), Pairs((other,), (("x",),))])
    assert "c" in str(told.value).split(" in A")[0].split("source")[1]
    assert len(str(told.value)) < 300
