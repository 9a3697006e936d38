"""Whole runs of classification with two texts a row: every pass reads token types, and the verbs show both texts."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
)

import secateur
from classes import LABELS, MOVEMENT, SCORED, TRAIN, VOCABULARY, Classes, text_pairs_of
from secateur import measure, prediction, sensing
from secateur.artifacts.manifest import read_manifest
from secateur.errors import CheckpointError, DataError
from secateur.recipe.load import load_recipe
from secateur.report.card import write_card
from secateur.searching import search
from secateur.tasks.labels import name_labels

STAGES = f"""
  - name: weights
    prune:
      groups:{SCORED}
      calibration: {{rows: 16, batch_size: 8}}{MOVEMENT}
  - name: units
    prune:
      groups:
        - {{unit: head, sparsity: 0.5, score: l2_norm}}
        - {{unit: ffn_neuron, sparsity: 0.5, score: taylor}}
        - {{unit: hidden_dim, sparsity: 0.5, score: taylor}}
        - {{unit: vocab_row, score: frequency}}
      calibration: {{rows: 16, batch_size: 8}}
  - name: cut
    cut: {{rows: 8}}
  - name: retrain
    train: {TRAIN}}}
"""
DISTIL = f"""
  - name: distil
    train: {TRAIN}, teacher: TEACHER, distillation: {{hidden: 1.0}}}}
"""


@pytest.fixture(scope="module")
def dense(text_pairs: Classes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_pairs.run(tmp_path_factory.mktemp("dense") / "run").folder


class Passes:
    """Notes of every pass whether it was told of which text each token is: None, or the types that occurred."""

    def __init__(self) -> None:
        self.types: list[set[int] | None] = []

    def note(self, given: torch.Tensor | None) -> None:
        self.types.append(None if given is None else set(given.unique().tolist()))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    seen, forward = Passes(), BertForSequenceClassification.forward

    @functools.wraps(forward)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.note(kwargs.get("token_type_ids"))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", watched)
    yield seen


def test_every_pass_of_a_run_reads_token_types(
    text_pairs: Classes, dense: Path, passes: Passes, tmp_path: Path
) -> None:
    done = text_pairs.run(tmp_path / "run", STAGES, model=dense)
    assert len(passes.types) > 40
    assert all(found == {0, 1} for found in passes.types)
    units, cut_stage = done.manifest["stages"][2:4]
    assert cut_stage["metrics"] == units["metrics"]
    assert cut_stage["cut"]["proof"]["rows"] == 8
    planned = secateur.plan(text_pairs.recipe(STAGES, model=dense)).stages
    assert cut_stage["counts"]["num_parameters"] == planned[3].num_parameters
    assert done.manifest["stages"][1]["train"]["cut_sources"] > 0


def test_one_text_a_row_is_told_of_no_types(classes: Classes, trained: Path, passes: Passes, tmp_path: Path) -> None:
    classes.run(tmp_path / "run", STAGES, model=trained)
    assert len(passes.types) > 40
    assert all(found is None for found in passes.types)


def test_a_measurement_is_that_of_plain_transformers(text_pairs: Classes, dense: Path) -> None:
    found = measure.evaluate(str(dense), split="test")
    model = AutoModelForSequenceClassification.from_pretrained(dense / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(dense / "model")
    rows = text_pairs_of(16, start=2)
    texts = [[row[name] for row in rows] for name in ("premise", "hypothesis")]
    with torch.no_grad():
        given = tokenizer(*texts, truncation=True, max_length=12, padding=True, return_tensors="pt")
        shares, classes = model(**given).logits.double().softmax(-1).max(-1)
    assert [item.text for item in found.result.predictions] == [LABELS[index] for index in classes.tolist()]
    assert [item.probability for item in found.result.predictions] == pytest.approx(shares.tolist(), rel=1e-5)
    right = [LABELS[index] == row["label"] for index, row in zip(classes.tolist(), rows, strict=True)]
    assert found.result.figures["accuracy"].value == pytest.approx(100 * sum(right) / len(right))
    assert found.result.figures["accuracy"].value > 60.0  # of three classes, equally many


# Teachers


def distilbert(place: Path, tokenizer: Any) -> Path:
    """A DistilBERT for the classes, with a tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        config = DistilBertConfig(
            vocab_size=len(VOCABULARY), dim=12, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=24
        )
        name_labels(config, LABELS)
        DistilBertForSequenceClassification(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


WORDS = {token: index for index, token in enumerate(VOCABULARY)}


@pytest.mark.parametrize("kind", [BertTokenizer, DistilBertTokenizer])
def test_bert_teaches_a_distilbert_with_token_types(
    text_pairs: Classes, dense: Path, passes: Passes, tmp_path: Path, kind: Any
) -> None:
    student = distilbert(tmp_path / "student", kind(vocab=WORDS))
    done = text_pairs.run(tmp_path / "run", DISTIL.replace("TEACHER", str(dense)), model=student)
    assert done.manifest["stages"][0]["train"]["teacher"]["model"] == str(dense)
    assert len(passes.types) >= 11  # a step each; evaluation is the student's
    assert all(found == {0, 1} for found in passes.types)


def test_a_distilbert_teaches_bert(text_pairs: Classes, dense: Path, passes: Passes, tmp_path: Path) -> None:
    teacher = distilbert(tmp_path / "teacher", DistilBertTokenizer(vocab=WORDS))
    text_pairs.run(tmp_path / "run", DISTIL.replace("TEACHER", str(teacher)), model=dense)
    assert all(found == {0, 1} for found in passes.types)


def test_a_teacher_that_would_tell_the_student_more_than_its_own_tokenizer_is_refused(
    text_pairs: Classes, dense: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    BertForSequenceClassification.from_pretrained(dense / "model").save_pretrained(student)
    DistilBertTokenizer(vocab=WORDS).save_pretrained(student)
    with pytest.raises(CheckpointError, match="reads two texts a row otherwise than the student's"):
        text_pairs.run(tmp_path / "run", DISTIL.replace("TEACHER", str(dense)), model=student)


# The verbs


def test_predictions_comparisons_and_the_card_show_both_texts(dense: Path, tmp_path: Path) -> None:
    found = measure.evaluate(str(dense), split="test", predictions=tmp_path / "p.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    rows = text_pairs_of(16, start=2)
    assert [line["source"] for line in lines] == [[row["premise"], row["hypothesis"]] for row in rows]
    assert (dense / "02-final" / "predictions.jsonl").read_text() == (tmp_path / "p.jsonl").read_text()
    both = secateur.compare([str(dense), str(tmp_path / "p.jsonl"), str(dense / "model")], split="test")
    assert [entry.figures["accuracy"].value for entry in both.entries] == [found.result.figures["accuracy"].value] * 3
    lines[3]["source"][1] = "z z z"
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"row 4 has the source .* in .*, and 'z z z' in"):
        secateur.compare([str(tmp_path / "p.jsonl"), str(tmp_path / "other.jsonl")], metrics=["accuracy"])
    card = write_card(dense).read_text()
    assert f"{rows[0]['premise']}<br>{rows[0]['hypothesis']}" in card


def test_predict_reads_files_of_both_columns_and_pairs_of_texts(dense: Path, tmp_path: Path) -> None:
    rows = text_pairs_of(5, start=2)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    texts = [(row["premise"], row["hypothesis"]) for row in rows]
    found = prediction.predict(str(dense), texts)
    assert found.sources == tuple(texts)
    assert prediction.predict(str(dense), [list(pair) for pair in texts]) == found  # type: ignore[arg-type]
    for name in ("a.jsonl", "a.csv"):
        assert prediction.predict(str(dense), tmp_path / name) == found
    assert [json.loads(line)["source"] for line in found.as_text("jsonl").splitlines()] == list(map(list, texts))
    read = list(csv.DictReader(found.as_text("csv").splitlines()))
    assert [(row["source_1"], row["source_2"]) for row in read] == texts
    turned = prediction.predict(str(dense), tmp_path / "a.csv", overrides=["task.source=[hypothesis, premise]"])
    assert turned.sources == tuple((second, first) for first, second in texts)
    alone = prediction.predict(str(dense), tmp_path / "a.csv", overrides=["task.source=premise"])
    assert alone.sources == tuple(first for first, _ in texts)
    prefixed = prediction.predict(str(dense), texts, overrides=["task.prefix='a '"])
    assert prefixed.sources == found.sources
    assert prefixed.texts == prediction.predict(str(dense), [(f"a {first}", second) for first, second in texts]).texts


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["ab"], "row 1: must be two texts, and is 'ab'"),
        ([("a", "b"), ("a", "b", "c")], "row 2: must be two texts"),
        ([("a", 3)], "texts, hypothesis:\nrow 1: must be text, and is int 3"),
        ("a.txt", "holds one text a line, and the task reads two a row, 'premise' and 'hypothesis'"),
        ("a.jsonl", r"no column 'hypothesis'. .*Choose two with --set 'task.source=\[FIRST, SECOND\]'"),
    ],
)
def test_what_are_not_two_texts_is_told(dense: Path, tmp_path: Path, texts: Any, told: str) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "a.jsonl").write_text('{"premise": "a"}\n')
    with pytest.raises(DataError, match=told):
        prediction.predict(str(dense), tmp_path / texts if isinstance(texts, str) else texts)


def test_rows_in_memory_and_the_recipe_in_the_folder(text_pairs: Classes, dense: Path, tmp_path: Path) -> None:
    rows = text_pairs_of(12)
    recipe = text_pairs.recipe(f"\n  - name: a\n    train: {TRAIN}}}\n", model=dense)
    done = secateur.run(recipe, tmp_path / "run", data={"train": rows, "validation": rows})
    assert load_recipe(tmp_path / "run" / "recipe.yaml").task.source == ("premise", "hypothesis")
    entry = read_manifest(done.folder)["stages"][0]
    assert entry["examples"][0]["source"] == [rows[0]["premise"], rows[0]["hypothesis"]]


def test_sensitivity_and_search_read_both_texts(dense: Path, passes: Passes, tmp_path: Path) -> None:
    content = sensing.sensitivity(
        str(dense), out=tmp_path / "curves", sparsities=(0.5,), score="taylor", quality=True, rows=8
    )
    assert content["dense_loss"] < 1.0
    search(str(dense), out=tmp_path / "search", budget=("counted", 0.8), sparsities=(0.3, 0.6), rows=8)
    assert secateur.plan(tmp_path / "search" / "recipe.yaml").stages[-1].counted_ratio == pytest.approx(0.8, abs=0.01)
    assert all(found == {0, 1} for found in passes.types)
