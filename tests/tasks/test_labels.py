"""Classes: their order, their names in a configuration, and rows that name one nobody knows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig

from secateur.errors import DataError
from secateur.tasks.labels import check_labels, encode_labelled, found_labels, labels_of, name_labels
from secateur.tasks.pairs import Pairs, load_pairs, pairs_from_rows


def pairs(*labels: str) -> Pairs:
    return Pairs(tuple("x" for _ in labels), tuple((label,) for label in labels))


def test_labels_stand_in_sorted_order_and_numbers_in_theirs() -> None:
    assert found_labels(pairs("b", "a", "b", "B")) == ("B", "a", "b")
    assert found_labels(pairs("2", "10", "0")) == ("0", "2", "10")
    assert found_labels(pairs("2", "10", "x")) == ("10", "2", "x")


def test_a_configuration_keeps_the_names_and_their_order(tmp_path: Path) -> None:
    config = BertConfig()
    name_labels(config, ("devel", "doc", "10"))
    config.save_pretrained(tmp_path)
    read = BertConfig.from_pretrained(tmp_path)
    assert read.num_labels == 3
    assert labels_of(read) == ("devel", "doc", "10")
    assert read.label2id == {"devel": 0, "doc": 1, "10": 2}


def test_classes_without_a_name_are_numbers() -> None:
    assert labels_of(BertConfig(num_labels=3)) == ("0", "1", "2")
    named = SimpleNamespace(id2label={0: "LABEL_0", 1: "no"}, num_labels=2)
    assert labels_of(named) == ("LABEL_0", "no")
    with pytest.raises(DataError, match="calls several classes 'a'"):
        labels_of(SimpleNamespace(id2label={0: "a", 1: "a"}, num_labels=2))


def test_targets_may_be_texts_or_whole_numbers() -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "label": 1}, {"text": "b", "label": " 0 "}]
    assert pairs_from_rows(rows, source="text", target="label", labels=True).references == (("1",), ("0",))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "row 2: column 'label' must be a class (text or a whole number), and is missing."),
        (True, "row 2: column 'label' must be a class (text or a whole number), and is bool True."),
        (0.5, "row 2: column 'label' must be a class (text or a whole number), and is float 0.5."),
        (["a"], "row 2: column 'label' must be a class (text or a whole number), and is list ['a']."),
        (" ", "row 2: column 'label' is empty. Remove the row, or fill it."),
    ],
)
def test_a_target_that_is_no_class_is_told(value: Any, told: str) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": value}]
    with pytest.raises(DataError) as caught:
        pairs_from_rows(rows, source="text", target="label", labels=True)
    assert told in str(caught.value)


def test_files_give_labels_too(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,0\n")
    found = load_pairs(tmp_path, "train", source="text", target="label", labels=True)
    assert found.references == (("1",), ("0",))


def test_an_unknown_class_is_told_with_its_rows() -> None:
    with pytest.raises(DataError, match=r"test: 2 of 3 rows have a class that the model does not know: 'c', 'd'."):
        check_labels(pairs("a", "c", "d"), ("a", "b"), "test")
    check_labels(pairs("a"), ("a", "b"), "test")


def test_rows_carry_the_number_of_their_class() -> None:
    def tokenizer(text: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[2, *map(ord, row), 3][: options.get("max_length")] for row in text]}

    rows = encode_labelled(
        Pairs(("ab", "a"), (("y",), ("x",))), tokenizer, ("x", "y"), max_source_tokens=3, vocab_size=200
    )
    assert rows[0] == {"input_ids": [2, 97, 98], "labels": [1]}
    assert rows.labels == [[1], [0]]
    assert (rows.num_cut_sources, rows.num_cut_targets) == (1, 0)
