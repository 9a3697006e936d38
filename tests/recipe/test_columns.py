"""The columns of a task: one, or in classification two; everything else has one fault that says what to write."""

from __future__ import annotations

import pytest

from secateur.errors import RecipeError
from secateur.recipe.load import dump_recipe, parse_recipe

CLASSIFICATION = """version: 1
model: m
task: {kind: classification, data: {path: d}, source: SOURCE, target: label, max_source_tokens: 8}
evaluation: {metrics: [accuracy]}
stages: [{name: a, evaluate: {}}]
"""
SEQ2SEQ = """version: 1
model: m
task: {data: {path: d}, source: SOURCE, target: t, max_source_tokens: 8, max_target_tokens: 8}
evaluation: {metrics: [per], max_new_tokens: 8}
stages: [{name: a, evaluate: {}}]
"""


def test_two_columns_read_back_as_they_were_written() -> None:
    recipe = parse_recipe(CLASSIFICATION.replace("SOURCE", "[premise, hypothesis]"))
    assert recipe.task.source == ("premise", "hypothesis")
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("value", "source"), [("body", "body"), ("[a, b]", ("a", "b")), ('["a", "b c"]', ("a", "b c"))]
)
def test_an_override_names_one_column_or_two(value: str, source: object) -> None:
    text = CLASSIFICATION.replace("SOURCE", "[premise, hypothesis]")
    assert parse_recipe(text, overrides=[f"task.source={value}"]).task.source == source


FAULTS = [
    (SEQ2SEQ, "[a, b]", "is a list, and seq2seq reads one column. Name one"),
    (CLASSIFICATION, "[a, b, c]", "lists 3, and a task reads one column or two."),
    (CLASSIFICATION, "[a]", "lists 1, and a task reads one column or two. Write `source: text`, or a list of two."),
    (CLASSIFICATION, "[]", "lists 0, and a task reads one column or two."),
    (CLASSIFICATION, "[a, a]", "a is named twice"),
    (CLASSIFICATION, "3", "must be text, not 3. Put it in quotes."),
    (CLASSIFICATION, "[a, 3]", "must be text, not 3. Put it in quotes."),
    (CLASSIFICATION, "[a, '']", "must not be empty."),
    (CLASSIFICATION, "''", "must not be empty."),
]


@pytest.mark.parametrize(("text", "source", "told"), FAULTS)
def test_anything_else_has_one_fault(text: str, source: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text.replace("SOURCE", source), name="r.yaml")
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith(f"r.yaml:3 task.source: {told}")
