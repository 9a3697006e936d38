"""Classes that a model names do not depend on the batch, and macro-F1 is what it says it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from secateur.evaluation.classify import classify
from secateur.evaluation.figures import score_predictions

LABEL = st.sampled_from("abcd")


class Letters:
    """Every letter is a token."""

    pad_token_id = 0

    def __call__(self, text: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[2, *(ord(letter) - 94 for letter in row), 1] for row in text]}


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20,
            max_position_embeddings=20, num_labels=3, id2label={0: "x", 1: "y", 2: "z"},
        )  # fmt: skip
        made = BertForSequenceClassification(config)
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.6)
    return made.train()


def test_batches_change_no_class_and_no_probability(model: Any) -> None:
    texts = ["a", "hello", "zzz", "abcdefgh", "b"]
    told: list[tuple[int, int]] = []
    alone = classify(model, Letters(), texts, max_source_tokens=12, batch_size=1)
    together = classify(
        model, Letters(), texts, max_source_tokens=12, batch_size=3, on_batch=lambda *done: told.append(done)
    )
    assert told == [(3, 5), (5, 5)]
    assert [item.text for item in alone] == [item.text for item in together]
    assert len({item.text for item in alone}) > 1
    for one, other in zip(alone, together, strict=True):
        assert one.probability is not None
        assert math.isclose(one.probability, other.probability or 0.0, rel_tol=1e-5)
        assert 1 / 3 <= one.probability <= 1
    assert model.training  # as it was


def _macro_f1(references: list[str], named: list[str]) -> float:
    shares = []
    for label in {*references, *named}:
        right = sum(a == b == label for a, b in zip(references, named, strict=True))
        precision = right / named.count(label) if label in named else 0.0
        recall = right / references.count(label) if label in references else 0.0
        shares.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return 100 * sum(shares) / len(shares)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(LABEL, LABEL), min_size=1, max_size=12))
def test_macro_f1_is_the_mean_over_the_classes_that_occur(rows: list[tuple[str, str]]) -> None:
    references, named = [row[0] for row in rows], [row[1] for row in rows]
    found = score_predictions(
        ["accuracy", "macro_f1"], named, [[reference] for reference in references], seed=0, resamples=20
    )
    assert found["macro_f1"].value == pytest.approx(_macro_f1(references, named))
    assert found["accuracy"].value == pytest.approx(100 * float(np.mean([a == b for a, b in rows])))
    assert found["macro_f1"].unit == "%"
    assert found["macro_f1"].low is not None
    assert 0 <= found["macro_f1"].low <= found["macro_f1"].value
