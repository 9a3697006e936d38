"""Classification in a recipe: what it needs, what cannot act beside it, and that what is saved reads back."""

from __future__ import annotations

import pytest

from secateur.errors import RecipeError
from secateur.recipe.load import dump_recipe, parse_recipe

RECIPE = """\
version: 1
model: encoder
task:
  kind: classification
  data: {path: data}
  source: text
  target: label
  max_source_tokens: 64
evaluation: {metrics: [accuracy, macro_f1], batch_size: 64}
stages:
  - name: dense
    train: {epochs: 3, learning_rate: 1.0e-4, batch_size: 32}
  - name: final
    evaluate: {split: test}
"""


def faults(old: str, new: str) -> list[str]:
    assert old in RECIPE
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE.replace(old, new), name="r.yaml")
    return list(caught.value.faults)


def test_a_recipe_of_classification_reads_back_with_every_default() -> None:
    recipe = parse_recipe(RECIPE)
    assert (recipe.task.max_target_tokens, recipe.evaluation.max_new_tokens) == (None, None)
    saved = dump_recipe(recipe)
    assert parse_recipe(saved) == recipe
    assert "max_target_tokens: null" in saved


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "max_source_tokens: 64",
            "max_source_tokens: 64\n  max_target_tokens: 3",
            "r.yaml:9 task.max_target_tokens: cannot act: classification names one class and writes no text.",
        ),
        ("batch_size: 64", "max_new_tokens: 3", "r.yaml:9 evaluation.max_new_tokens: cannot act: classification"),
        ("batch_size: 64", "num_beams: 4", "r.yaml:9 evaluation.num_beams: cannot act: classification"),
        ("split: test", "num_beams: 4", "r.yaml:14 stages.final.evaluate.num_beams: cannot act: classification"),
        (
            "[accuracy, macro_f1]",
            "[accuracy, rouge]",
            "r.yaml:9 evaluation.metrics.1: rouge is about texts that were written. For classification there are: "
            "accuracy, macro_f1.",
        ),
        ("split: test", "metrics: [per]", "r.yaml:14 stages.final.evaluate.metrics.0: per is about texts"),
        ("batch_size: 32", "batch_size: 32, teacher: t, pseudo_labels: {}", "train.pseudo_labels: cannot act: "),
        ("batch_size: 32", "batch_size: 32, denoising: {share: 0.5, until: 1.0}", "train.denoising: cannot act: "),
        ("evaluate: {split: test}", "export: {to: onnx}", "r.yaml:14 stages.final.export: of a classification model"),
        ("kind: classification", "kind: clasification", 'Did you mean "classification"?'),
    ],
)
def test_what_does_not_go_with_classification_is_told(old: str, new: str, told: str) -> None:
    assert any(told in fault for fault in faults(old, new)), faults(old, new)


def test_without_the_kind_it_is_a_seq2seq_recipe_that_lacks_its_limits() -> None:
    found = faults("  kind: classification\n", "")
    assert [fault.partition(": ")[0] for fault in found] == [
        "r.yaml:3 task.max_target_tokens",
        "r.yaml:8 evaluation.metrics.0",
        "r.yaml:8 evaluation.metrics.1",
        "r.yaml:8 evaluation.max_new_tokens",
    ]
