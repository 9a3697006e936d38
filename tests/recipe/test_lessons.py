"""What a training asks of its teacher: NNI's distillers are written out, and maps list what the task's models have."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.errors import RecipeError
from secateur.recipe import names
from secateur.recipe.load import check_recipe, dump_recipe, parse_recipe
from secateur.recipe.presets import DISTILLERS
from secateur.recipe.schema import Distillation, LayerLists, NniDistiller, Recipe, Train
from toy import Toy

SIZES = "max_source_tokens: 8"
TASKS = {
    "seq2seq": f"task: {{data: {{path: ./rows}}, source: a, target: b, {SIZES}, max_target_tokens: 8}}\n"
    "evaluation: {metrics: [per], max_new_tokens: 4}",
    "classification": f"task: {{kind: classification, data: {{path: ./rows}}, source: a, target: b, {SIZES}}}\n"
    "evaluation: {metrics: [accuracy]}",
}
NUMBERS: dict[str, Any] = {"epochs": 1.0, "learning_rate": 0.1, "batch_size": 2}
LISTS = LayerLists(encoder=((1,), (2, 3)), decoder=((2,),))


def recipe_of(lesson: str, *, kind: str = "seq2seq", teacher: str = "given") -> Recipe:
    text = f"""\
version: 1
model: ./m
{TASKS[kind]}
stages:
  - name: a
    train: {{epochs: 1, learning_rate: 0.1, batch_size: 2, teacher: {teacher}, {lesson}}}
"""
    return parse_recipe(text, name="r.yaml")


def distillation(lesson: str, **options: str) -> Distillation:
    train = recipe_of(lesson, **options).stages[0].train
    assert train and train.nni_distiller is None
    return train.distillation


@pytest.mark.parametrize(
    ("distiller", "same"),
    [
        ("name: dynamic_layerwise", "labels: 1.0, logits: 0.0, hidden: 1.0, map: nearest"),
        ("name: adaptive_1d_layerwise", "labels: 1.0, logits: 0.0, hidden: 1.0, map: height"),
        ("name: dynamic_layerwise, link: auto, lambda: 0.5", "logits: 0.0, hidden: 0.5, map: height"),
        ("name: dynamic_layerwise, origin_loss_lambda: 0.25", "labels: 0.25, logits: 0.0, hidden: 1.0, map: nearest"),
        ("name: dynamic_layerwise, apply_method: kl, lambda: 3", "logits: 3.0, temperature: 2.0"),
        (
            "name: adaptive_1d_layerwise, link: {encoder: [1, 3], decoder: [[2]]}",
            "logits: 0.0, hidden: 1.0, map: {encoder: [[1], [3]], decoder: [2]}",
        ),
    ],
)
def test_a_distiller_is_written_out(distiller: str, same: str) -> None:
    recipe = recipe_of(f"nni_distiller: {{{distiller}}}")
    assert recipe == recipe_of(f"distillation: {{{same}}}")
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_the_table_has_the_names_of_the_recipe() -> None:
    assert tuple(DISTILLERS) == names.words(names.NniDistiller)


def test_a_training_made_in_python_is_written_out_too() -> None:
    distiller = NniDistiller.model_validate({"name": "dynamic_layerwise", "lambda": 2.0, "link": LISTS})
    train = Train(**NUMBERS, teacher="given", nni_distiller=distiller)
    assert train == Train(**NUMBERS, teacher="given", distillation=Distillation(logits=0.0, hidden=2.0, map=LISTS))
    both = Train(**NUMBERS, teacher="given", nni_distiller=distiller, distillation=Distillation(hidden=1.0))
    recipe = recipe_of("dropout: 0.1")
    stage = recipe.stages[0].model_copy(update={"train": both})
    with pytest.raises(RecipeError, match="nni_distiller: and distillation exclude each other"):
        check_recipe(recipe.model_copy(update={"stages": (stage,)}))


@pytest.mark.parametrize("kind", TASKS)
def test_one_layer_is_a_list_of_one(kind: str) -> None:
    decoder = ", decoder: [[2]]" if kind == "seq2seq" else ""
    found = distillation(f"distillation: {{hidden: 1.0, map: {{encoder: [1, [2, 3]]{decoder}}}}}", kind=kind).map
    assert found == (LISTS if decoder else LayerLists(encoder=((1,), (2, 3))))


NNI = "nni_distiller: {{name: {}}}"


@pytest.mark.parametrize(
    ("lesson", "options", "told"),
    [
        (NNI.format("dynamic_layerwise"), {"teacher": "null"}, "train.nni_distiller: cannot act: no teacher is named"),
        (NNI.format("dynamic_layerwise, lambda: 0"), {}, "nni_distiller.lambda: asks nothing of the teacher"),
        (NNI.format("dynamic_layerwise, lambdo: 0"), {}, 'nni_distiller.lambdo: unknown key. Did you mean "lambda"?'),
        (NNI.format("dynamic_layerwise, lambda: x"), {}, 'nni_distiller.lambda: must be a number, not "x"'),
        (NNI.format("dynamic"), {}, 'name: no "dynamic". Choices: dynamic_layerwise, adaptive_1d_layerwise.'),
        (NNI.format("dynamic_layerwise, link: bert.layer.1"), {}, "Choices: auto. Or the teacher's layers for each"),
        (NNI.format("dynamic_layerwise, apply_method: kl, link: auto"), {}, "link: cannot act beside kl"),
        (
            NNI.format("adaptive_1d_layerwise, link: {encoder: [[1, 2]], decoder: [1]}"), {},
            "link.encoder.0: adaptive_1d_layerwise learns from one layer",
        ),
        (NNI.format("dynamic_layerwise") + ", distillation: {hidden: 1.0}", {}, "nni_distiller: and distillation excl"),
        ("distillation: {hidden: 1.0, map: heigt}", {}, 'map: no "heigt". Did you mean "height"? Choices: height, '),
        ("distillation: {hidden: 1.0, map: 3}", {}, "map: no 3. Choices: height, nearest. Or the teacher's layers"),
        ("distillation: {hidden: 1.0, map: {encoder: [1]}}", {}, "map.decoder: is missing: list a layer"),
        ("distillation: {hidden: 1.0, map: {encodr: [1]}}", {}, 'map.encodr: unknown key. Did you mean "encoder"?'),
        ("distillation: {hidden: 1.0, map: {encoder: [0], decoder: [1]}}", {}, "map.encoder.0: must be at least 1"),
        ("distillation: {hidden: 1.0, map: {encoder: [[1, a]], decoder: [1]}}", {}, "map.encoder.0.1: must be a whole"),
        ("distillation: {hidden: 1.0, map: {encoder: [[]], decoder: [1]}}", {}, "map.encoder.0: must not be empty"),
        ("distillation: {hidden: 1.0, map: {encoder: [], decoder: [1]}}", {}, "map.encoder: must not be empty"),
        ("distillation: {hidden: 1.0, map: {encoder: [[2, 2]], decoder: [1]}}", {}, "encoder.0: lists a layer twice"),
        (
            "distillation: {hidden: 1.0, map: {encoder: [1], decoder: [1]}}", {"kind": "classification"},
            "map.decoder: cannot act: a classifier has no decoder",
        ),
        ("distillation: {map: {encoder: [1], decoder: [1]}}", {}, "map: cannot act: hidden weighs nothing"),
        ("distillation: {projection: always}", {}, "projection: cannot act: hidden weighs nothing"),
    ],
)  # fmt: skip
def test_faults_are_told_once_and_where_they_stand(lesson: str, options: dict[str, str], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(lesson, **options)
    assert [fault for fault in caught.value.faults if told in fault], caught.value.faults
    assert all(fault.startswith("r.yaml:7 stages.a.train.") for fault in caught.value.faults)
    assert len({fault.split(":")[1] for fault in caught.value.faults}) == len(caught.value.faults)


STAGES_WITH_A_SMALLER_TABLE = """
  - name: dense
    train: {{epochs: 1, learning_rate: 1.0e-3, batch_size: 4}}
  - name: rows
    prune: {{groups: [{{unit: vocab_row, sparsity: 0.2, score: frequency}}]}}
  - name: trimmed
    cut: {{}}
  - name: heads
    prune: {{groups: [{{unit: head, sparsity: 0.5, score: l2_norm}}]}}
  - name: cut
    cut: {{}}
  - name: distil
    train: {{epochs: 1, learning_rate: 1.0e-3, batch_size: 4, teacher: {teacher}{more}}}
"""


@pytest.mark.parametrize("teacher", ["given", "dense", "rows"])
def test_a_teacher_from_before_rows_were_cut_is_told_before_the_run(toy: Toy, teacher: str) -> None:
    with pytest.raises(RecipeError, match=r"stages\.distil\.train\.teacher.* reads other tokens"):
        toy.recipe(STAGES_WITH_A_SMALLER_TABLE.format(teacher=teacher, more=""), initialize="pretrained")
    only_texts = ", distillation: {logits: 0.0}, pseudo_labels: {}"
    toy.recipe(STAGES_WITH_A_SMALLER_TABLE.format(teacher=teacher, more=only_texts), initialize="pretrained")


@pytest.mark.parametrize("teacher", ["trimmed", "heads", "path/to/another"])
def test_a_teacher_with_the_smaller_table_may_teach(toy: Toy, teacher: str) -> None:
    recipe = toy.recipe(STAGES_WITH_A_SMALLER_TABLE.format(teacher=teacher, more=""))
    assert recipe.stages[-1].train is not None
