"""Whole runs of classification: a new head, training that resumes bit for bit, teachers, scores, and the verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    BertTokenizer,
    TrainerCallback,
)

import secateur
from classes import LABELS, MOVEMENT, SCORED, STAGES, TRAIN, VOCABULARY, Classes, rows_of
from secateur import measure, prediction, sensing, sweeping
from secateur.artifacts.loading import load_model
from secateur.artifacts.manifest import read_manifest
from secateur.benching import bench
from secateur.errors import CheckpointError, DataError, RecipeError, SecateurError
from secateur.exports.folder import ExportError
from secateur.latency import search_latency
from secateur.making import export
from secateur.report.card import write_card
from secateur.searching import search
from toy import Killed

PRUNED = f"""
  - name: weights
    prune:
      groups:{SCORED}
        - {{role: classifier, sparsity: 0.2, score: activation}}
      calibration: {{rows: 16, batch_size: 8}}{MOVEMENT}
  - name: retrain
    train: {TRAIN}, accumulation: 2, teacher: given, distillation: {{hidden: 1.0}}}}
"""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(first: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


class KillAt(TrainerCallback):
    """Kills a run at a step of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).parent.name.endswith(self.stage) and state.global_step == self.step:
            raise Killed


# A new head


def test_a_folder_without_a_head_gets_one_for_the_classes_of_the_training_rows(trained: Path) -> None:
    manifest = read_manifest(trained)
    assert manifest["classes"] == list(LABELS)
    assert manifest["new_head"] is True
    assert manifest["dense"] is None  # a head that knows nothing has nothing to show
    model = AutoModelForSequenceClassification.from_pretrained(trained / "model")
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {name: index for index, name in enumerate(LABELS)}
    accuracy = manifest["stages"][0]["metrics"]["accuracy"]
    assert accuracy["value"] > 60.0  # of three classes, equally many
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_a_new_head_is_a_function_of_the_seed(classes: Classes) -> None:
    first, same, other = (
        dict(load_model(str(classes.start), labels=LABELS, seed=seed).named_parameters()) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert [name for name in first if not torch.equal(first[name], other[name])] == ["classifier.weight"]
    with pytest.raises(CheckpointError, match=r"classifier\.bias is missing"):
        load_model(str(classes.start))


def test_plan_tells_of_the_head(classes: Classes, trained: Path) -> None:
    plan = secateur.plan(classes.recipe())
    assert plan.head == "a new head for 3 classes, which knows nothing before a training"
    assert plan.stages[0].steps == 66
    assert secateur.plan(classes.recipe(model=trained)).head == "the model's own, for 3 classes"
    assert read_manifest(trained)["dense_parameters"] == plan.dense_parameters


def test_a_head_for_other_classes_is_replaced(classes: Classes, trained: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": str(index % 2)} for index, row in enumerate(rows_of(12))]
    recipe = classes.recipe(f"\n  - name: more\n    train: {TRAIN}}}\n", model=trained)
    found = secateur.run(recipe, tmp_path / "run", data={"train": rows, "validation": rows})
    assert found.manifest["classes"] == ["0", "1"]
    assert found.manifest["new_head"] is True


FAULTS = [
    (
        "\n  - name: look\n    evaluate: {}\n",
        r"stages\.look: the model gets a new head, which has nothing to show",
    ),
    (
        "\n  - name: small\n    prune: {groups: [{role: feed_forward, sparsity: 0.5}]}\n"
        "  - name: look\n    evaluate: {}\n"
        f"  - name: a\n    train: {TRAIN}}}\n",
        r"stages\.look: the model gets a new head, which has nothing to show",
    ),
    (
        "\n  - name: small\n    prune: {groups: [{role: feed_forward, sparsity: 0.5}]}\n",
        r"gets a new head for .*, which no stage trains",
    ),
    (f"\n  - name: a\n    train: {TRAIN}, teacher: given}}\n", r"stages\.a\.train\.teacher: given gets a new head"),
]


@pytest.mark.parametrize(("stages", "told"), FAULTS)
def test_nothing_is_asked_of_a_head_that_knows_nothing(
    classes: Classes, stages: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=told):
        secateur.plan(classes.recipe(stages))
    with pytest.raises(RecipeError, match=told):
        secateur.run(classes.recipe(stages), tmp_path / "run")


def test_a_model_for_the_other_task_is_refused(classes: Classes, toy: Any) -> None:
    with pytest.raises(RecipeError, match=r"task.kind: classification does not go with .*: a t5 writes texts"):
        secateur.plan(classes.recipe(model=toy.start))
    recipe = toy.recipe().model_copy(update={"model": str(classes.start)})
    with pytest.raises(RecipeError, match=r"task.kind: seq2seq does not go with .*: a bert names classes"):
        secateur.plan(recipe)
    with pytest.raises(RecipeError, match=r"max_source_tokens: 25 is more than this model has positions for \(24\)"):
        task = classes.recipe().task.model_copy(update={"max_source_tokens": 25})
        secateur.plan(classes.recipe().model_copy(update={"task": task}))


def test_rows_of_a_class_that_training_never_saw_are_told(classes: Classes, tmp_path: Path) -> None:
    rows = [*rows_of(5), {"text": "a b", "label": "strange"}]
    with pytest.raises(DataError, match=r"test: 1 of 6 rows have a class that the model does not know: 'strange'"):
        secateur.run(classes.recipe(), tmp_path / "run", data={"train": rows_of(20), "test": rows})


# Training


def test_a_killed_run_ends_as_an_unbroken_one(classes: Classes, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        classes.run(tmp_path / "run", STAGES, KillAt("dense", 33))
    classes.run(tmp_path / "run", resume=True)
    assert equal(weights(tmp_path / "run" / "model"), weights(trained / "model"))


def test_scores_masks_and_a_teacher(classes: Classes, trained: Path, tmp_path: Path) -> None:
    whole = classes.run(tmp_path / "whole", PRUNED, model=trained).folder
    stages = {entry["name"]: entry for entry in read_manifest(whole)["stages"]}
    assert stages["retrain"]["train"]["teacher"]["model"] == "given"
    assert stages["retrain"]["train"]["cut_targets"] == 0
    removed = {row["path"]: row["num_removed"] / row["num_elements"] for row in stages["retrain"]["sparsity"]}
    attention = [share for path, share in removed.items() if "attention" in path]
    assert sum(attention) / len(attention) == pytest.approx(0.5, abs=0.01)
    head = [row for row in stages["retrain"]["sparsity"] if row["role"] == "classifier"]
    gone, there = (sum(row[key] for row in head) for key in ("num_removed", "num_elements"))
    assert gone == round(0.2 * there)
    stored = weights(whole / "model")
    for row in stages["retrain"]["sparsity"]:
        assert int((stored[row["path"]] == 0).sum()) >= row["num_removed"]
    with pytest.raises(Killed):
        classes.run(tmp_path / "broken", PRUNED, KillAt("movement", 8), model=trained)
    with pytest.raises(Killed):
        classes.run(tmp_path / "broken", PRUNED, KillAt("retrain", 5), model=trained, resume=True)
    classes.run(tmp_path / "broken", PRUNED, model=trained, resume=True)
    assert equal(weights(tmp_path / "broken" / "model"), stored)


CUT = f"""
  - name: units
    prune:
      groups:
        - {{unit: head, sparsity: 0.5, score: l2_norm, width: ragged}}
        - {{unit: ffn_neuron, sparsity: 0.5, score: taylor, width: by_heads}}
        - {{unit: hidden_dim, sparsity: 0.5, score: taylor}}
      calibration: {{rows: 16, batch_size: 8}}
  - name: cut
    cut: {{rows: 8}}
  - name: distil
    train: {TRAIN}, teacher: given, distillation: {{hidden: 1.0}}}}
"""


def test_whole_units_are_cut_out_and_a_wider_teacher_teaches(classes: Classes, trained: Path, tmp_path: Path) -> None:
    done = classes.run(tmp_path / "run", CUT, model=trained)
    cut, distilled = done.manifest["stages"][1:]
    assert cut["metrics"] == done.manifest["stages"][0]["metrics"]
    planned = secateur.plan(classes.recipe(CUT, model=trained)).stages
    assert cut["counts"]["num_parameters"] == planned[1].num_parameters < planned[0].num_parameters / 2
    heads, neurons = cut["cut"]["left"]["heads"]["encoder.self_attention"], cut["cut"]["left"]["neurons"]["encoder"]
    assert sum(heads) == 4
    assert sum(neurons) == 20
    assert neurons == sorted(neurons, reverse=heads[0] > heads[1])
    small = secateur.load(str(done.folder))
    assert small.config.hidden_size == 8
    assert sum(parameter.numel() for parameter in small.parameters()) == distilled["counts"]["num_parameters"]
    assert distilled["train"]["losses"][0][1] > 0
    assert (
        measure.evaluate(str(done.folder)).result.figures["accuracy"].value
        == (distilled["metrics"]["accuracy"]["value"])
    )


VOCABULARY_STAGES = f"""
  - name: rows
    prune: {{groups: [{{unit: vocab_row, score: frequency}}]}}
  - name: cut
    cut: {{rows: 8}}
  - name: retrain
    train: {TRAIN}}}
"""


def test_pieces_that_the_rows_never_need_are_cut_out_of_a_wordpiece_vocabulary(
    classes: Classes, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    tokenizer = BertTokenizer(vocab={name: index for index, name in enumerate((*VOCABULARY, "oak", "##en", "abc"))})
    tokenizer.save_pretrained(start)
    model = BertModel.from_pretrained(classes.start)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(start)
    done = classes.run(tmp_path / "run", VOCABULARY_STAGES, model=start)
    rows, cut, _ = done.manifest["stages"]
    assert cut["metrics"] == rows["metrics"]
    trimmed = AutoTokenizer.from_pretrained(done.folder / "model")
    assert set(tokenizer.get_vocab()) - set(trimmed.get_vocab()) == {"oak", "##en", "abc"}
    assert trimmed.tokenize("oak a b") == ["[UNK]", "a", "b"]
    assert AutoModelForSequenceClassification.from_pretrained(done.folder / "model").config.vocab_size == len(trimmed)


def test_a_teacher_must_name_the_same_classes(classes: Classes, trained: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": str(index % 2)} for index, row in enumerate(rows_of(12))]
    recipe = classes.recipe(f"\n  - name: a\n    train: {TRAIN}, teacher: {trained}}}\n")
    with pytest.raises(RecipeError, match=r"train\.teacher: .*: this teacher names other classes than the student"):
        secateur.run(recipe, tmp_path / "run", data={"train": rows, "validation": rows})


def test_accumulation_changes_nothing_but_memory(classes: Classes, tmp_path: Path) -> None:
    train = "{{epochs: 1, learning_rate: 5.0e-3, batch_size: {}, accumulation: {}, precision: fp32, dropout: 0.0, "
    train += "group_by_length: false}}"
    found = []
    for size, steps in ((8, 1), (2, 4)):
        folder = tmp_path / str(size)
        classes.run(folder, f"\n  - name: a\n    train: {train.format(size, steps)}\n")
        found.append(weights(folder / "model"))
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], atol=2e-4), name


# The verbs


def test_evaluate_predict_and_the_card(classes: Classes, trained: Path, tmp_path: Path) -> None:
    found = measure.evaluate(str(trained), split="test", predictions=tmp_path / "p.jsonl")
    final = read_manifest(trained)["stages"][-1]
    assert {name: figure.value for name, figure in found.result.figures.items()} == {
        name: figure["value"] for name, figure in final["metrics"].items()
    }
    assert found.result.collapse is None
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {"source", "references", "prediction", "probability"}
    right = [line["prediction"] in line["references"] for line in lines]
    assert 100 * sum(right) / len(right) == found.result.figures["accuracy"].value
    texts = [line["source"] for line in lines]
    written = prediction.predict(str(trained), texts)
    assert written.texts == [line["prediction"] for line in lines]
    assert [json.loads(line)["probability"] for line in written.as_text("jsonl").splitlines()] == pytest.approx(
        [line["probability"] for line in lines], abs=1e-5
    )
    assert written.as_text("csv").splitlines()[0] == '"source","prediction","probability"'
    both = secateur.compare([str(trained), str(tmp_path / "p.jsonl")], split="test")
    assert [entry.figures["macro_f1"].value for entry in both.entries] == [found.result.figures["macro_f1"].value] * 2
    card = write_card(trained).read_text()
    assert "accuracy" in card
    assert "macro_f1" in card
    assert "truncated" not in card
    assert "3 classes" in card


def test_what_is_about_written_texts_is_refused(classes: Classes, trained: Path, toy: Any, tmp_path: Path) -> None:
    for call in (
        lambda: sweeping.sweep(str(trained), out=tmp_path / "a", max_new_tokens=[3]),
        lambda: bench([str(trained)], out=tmp_path / "b"),
        lambda: search_latency(str(trained), out=tmp_path / "c", latency_ms=5.0),
    ):
        with pytest.raises(SecateurError, match=r"task\.kind is classification"):
            call()
    with pytest.raises(ExportError, match="names classes"):
        export(str(trained), to="ctranslate2", out=tmp_path / "d")
    with pytest.raises(SecateurError, match="T5ForConditionalGeneration writes texts"):
        measure.evaluate(str(toy.start), classes.recipe(), split="test")


def test_sensitivity_goes_by_the_loss(classes: Classes, trained: Path, tmp_path: Path) -> None:
    content = sensing.sensitivity(str(trained), out=tmp_path / "curves", sparsities=(0.3, 0.9), quality=True)
    assert {cell["name"] for cell in content["cells"]} == {"encoder self_attention", "encoder feed_forward"}
    assert content["dense_metrics"]["accuracy"]["value"] > 60.0
    assert content["dense_loss"] < 1.0
    facts = search(str(trained), out=tmp_path / "search", budget=("counted", 0.8), sparsities=(0.3, 0.6), rows=8)
    assert set(facts["sparsities"]) <= {"encoder self_attention", "encoder feed_forward"}
    plan = secateur.plan(tmp_path / "search" / "recipe.yaml")
    assert plan.stages[-1].counted_ratio == pytest.approx(0.8, abs=0.01)
