"""What a file of predictions looks like: JSON lines, CSV, or the two columns that the report's course takes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from secateur.evaluation.generate import Prediction
from secateur.tasks.pairs import Source

COLUMNS = ("source", "prediction", "num_tokens", "truncated")

NOTHING = "---"
# What pandas reads as a missing value, quoted or not (pandas.io.parsers, `keep_default_na`).
_READ_AS_MISSING = {
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
}  # fmt: skip


def jsonl(sources: Sequence[Source], predictions: Sequence[Prediction]) -> str:
    """Write one JSON object a line: source, prediction, num_tokens, truncated; of a class probability instead.

    A source of two texts is a list of both.

    >>> print(jsonl(["a bill"], [Prediction("A law", 3, False)]), end="")
    {"source": "a bill", "prediction": "A law", "num_tokens": 3, "truncated": false}
    """
    lines = [json.dumps(row, ensure_ascii=False) for row in _rows(sources, predictions)]
    return "".join(f"{line}\n" for line in lines)


def comma_separated(sources: Sequence[Source], predictions: Sequence[Prediction]) -> str:
    r"""Write CSV (RFC 4180) with a header, the names of `jsonl`; texts stand in quotes.

    A source of two texts fills the columns source_1 and source_2.

    >>> comma_separated(["a, bill"], [Prediction("A law", 3, False)])
    '"source","prediction","num_tokens","truncated"\n"a, bill","A law",3,"false"\n'
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")  # a lone \r must stand in quotes
    rows = [_flat(row) for row in _rows(sources, predictions)]
    writer.writerow(rows[0] if rows else COLUMNS)
    for row in rows:
        writer.writerow([json.dumps(value) if isinstance(value, bool) else value for value in row.values()])
    return stream.getvalue()


def course(sources: Sequence[Source], predictions: Sequence[Prediction]) -> str:
    r"""Write the submission of the report's course: the columns ID, from 0, and Predict, every value in quotes.

    Source: the course's own notebook and sample submission (NYCU Data Science 2024, homework 4); see `course_text`.

    >>> course(["a bill"], [Prediction("A law, amended", 3, False)])
    '"ID","Predict"\n"0","A law. amended"\n'
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["ID", "Predict"])
    for index, (_, prediction) in enumerate(zip(sources, predictions, strict=True)):
        writer.writerow([index, course_text(prediction.text)])
    return stream.getvalue()


def course_text(text: str) -> str:
    """Escape a text as the course's notebook does, before it is written as CSV.

    Commas become full stops, as the course's score has them in any case; quotes are doubled (CSV then doubles each of
    them once more, in the course's own files too); a line break becomes a space. Deviation: a text that pandas would
    read as a missing value, an empty one above all, becomes `---`, because the course's score breaks off at those.

    Args:
        text: an output.

    Returns:
        What goes into the column Predict.

    >>> course_text('Amends "the Act", 1990'), course_text("")
    ('Amends ""the Act"". 1990', '---')
    """
    escaped = text.replace(",", ".").replace('"', '""').replace("\r\n", " ").replace("\r", " ").replace("\n", " ")
    return NOTHING if escaped in _READ_AS_MISSING else escaped


def about(prediction: Prediction) -> dict[str, int | bool | float]:
    """Name what is known of a prediction beside its text.

    Args:
        prediction: a text that was written, or the name of a class.

    Returns:
        num_tokens and truncated; of a class its probability.

    >>> about(Prediction("devel", 0, False, probability=0.75))
    {'probability': 0.75}
    """
    if prediction.probability is not None:
        return {"probability": prediction.probability}
    return {"num_tokens": prediction.num_tokens, "truncated": prediction.truncated}


def _rows(sources: Sequence[Source], predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [
        {"source": source, "prediction": prediction.text, **about(prediction)}
        for source, prediction in zip(sources, predictions, strict=True)
    ]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Give each text of a source a column of its own.

    >>> _flat({"source": ("a", "b"), "prediction": "x"})
    {'source_1': 'a', 'source_2': 'b', 'prediction': 'x'}
    """
    source = row["source"]
    if isinstance(source, str):
        return row
    return {f"source_{number}": text for number, text in enumerate(source, start=1)} | {
        key: value for key, value in row.items() if key != "source"
    }


FORMATS: dict[str, Callable[[Sequence[Source], Sequence[Prediction]], str]] = {
    "jsonl": jsonl,
    "csv": comma_separated,
    "course": course,
}
