"""The columns that a task reads: one, or in classification the two texts of a pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, StringConstraints, Tag

from secateur.recipe.yaml_tree import Path

_Column = Annotated[str, StringConstraints(min_length=1)]


def _is_list(value: Any) -> str:
    return "columns" if isinstance(value, (list, tuple)) else "column"


# One of the two is checked, not both: then a value that is neither has one fault. How many columns there may be is told
# by `findings`, which knows the task's kind.
Columns = Annotated[
    Annotated[_Column, Tag("column")] | Annotated[tuple[_Column, ...], Tag("columns")], Discriminator(_is_list)
]


def findings(kind: str, task: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Check the columns that a task reads.

    Args:
        kind: seq2seq or classification.
        task: what stands under `task`, as plain values; anything may be missing or of the wrong type.

    Yields:
        The path and the message of the fault, if there is one.

    >>> [told for _, told in findings("classification", {"source": ["question", "sentence"]})]
    []
    >>> [told for _, told in findings("classification", {"source": ["question", "question"]})]
    ['question is named twice: the two texts of a pair stand in two columns.']
    """
    source = task.get("source")
    if not isinstance(source, (list, tuple)):
        return
    twice = [name for name, count in Counter(map(str, source)).items() if count > 1]
    told = ""
    if kind != "classification":
        told = "is a list, and seq2seq reads one column. Name one: two texts a row are read by kind: classification."
    elif len(source) != 2:
        told = f"lists {len(source)}, and a task reads one column or two. Write `source: text`, or a list of two."
    elif twice:
        told = f"{twice[0]} is named twice: the two texts of a pair stand in two columns."
    if told:
        yield ("task", "source"), told


__all__ = ["Columns", "findings"]
