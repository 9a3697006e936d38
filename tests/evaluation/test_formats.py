"""Files of predictions read back as they were written, and the course's as its own notebook writes it."""

from __future__ import annotations

import csv
import io
import json

import pandas
from hypothesis import given
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES

from secateur.evaluation import formats
from secateur.evaluation.generate import Prediction
from secateur.evaluation.rouge import course_score

TEXT = st.text(st.characters(codec="utf-8"), max_size=30) | st.text(alphabet='a,."\n\r ', max_size=20)
WORDS = st.text(alphabet='aB,. "', max_size=40)
ROWS = st.lists(st.tuples(TEXT, TEXT, st.integers(0, 9), st.booleans()), min_size=1, max_size=5)


def _rows(rows: list[tuple[str, str, int, bool]]) -> tuple[list[str], list[Prediction]]:
    return [row[0] for row in rows], [Prediction(*row[1:]) for row in rows]


def _course(texts: list[str]) -> str:
    return formats.course([""] * len(texts), [Prediction(text, 1, False) for text in texts])


@given(ROWS)
def test_json_lines_read_back(rows: list[tuple[str, str, int, bool]]) -> None:
    lines = formats.jsonl(*_rows(rows)).split("\n")
    assert lines.pop() == ""
    assert [tuple(json.loads(line).values()) for line in lines] == rows
    assert all(tuple(json.loads(line)) == formats.COLUMNS for line in lines)


@given(ROWS)
def test_csv_reads_back(rows: list[tuple[str, str, int, bool]]) -> None:
    found = list(csv.DictReader(io.StringIO(formats.comma_separated(*_rows(rows)), newline="")))
    read = [(row["source"], row["prediction"], int(row["num_tokens"]), row["truncated"] == "true") for row in found]
    assert read == rows


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_the_courses_file_is_what_its_notebook_writes(texts: list[str]) -> None:
    kept = [text for text in texts if text not in STR_NA_VALUES and "\r" not in text] or ["a"]
    table = pandas.DataFrame({"ID": range(len(kept)), "Predict": kept}, dtype=object)
    table["Predict"] = [text.replace(",", ".").replace('"', '""').replace("\n", " ") for text in kept]
    assert _course(kept) == table.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\n")


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_the_courses_file_holds_a_row_a_text_for_any_reader(texts: list[str]) -> None:
    written = _course(texts)
    lines = written.split("\n")[:-1]
    assert [len(line.split(",")) for line in lines] == [2] * (len(texts) + 1)  # not even quotes need be known
    if not any("\0" in text for text in texts):  # which pandas' parser takes for an end
        table = pandas.read_csv(io.StringIO(written), dtype={"Predict": str})
        assert list(table["ID"]) == list(range(len(texts)))
        assert not table["Predict"].isna().any()  # the course's score breaks off at a missing value


def test_every_word_for_a_missing_value_is_written_as_a_text() -> None:
    assert len(STR_NA_VALUES) > 15
    assert {formats.course_text(word) for word in STR_NA_VALUES} == {formats.NOTHING}


@given(WORDS.filter(lambda text: text not in STR_NA_VALUES), WORDS)
def test_escaping_does_not_change_the_courses_score(text: str, reference: str) -> None:
    escaped = course_score(formats.course_text(text), formats.course_text(reference))
    assert escaped == course_score(text, reference)
