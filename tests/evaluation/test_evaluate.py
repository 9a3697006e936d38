"""One call measures a model; what it wrote is kept as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from secateur.errors import DataError, SecateurError
from secateur.evaluation.evaluate import evaluate_model, read_predictions, write_predictions
from secateur.evaluation.figures import score_predictions
from secateur.evaluation.generate import Prediction
from secateur.evaluation.metrics import METRICS
from secateur.tasks.cmudict import build_tokenizer
from secateur.tasks.pairs import Pairs, load_pairs

TOKENIZER = build_tokenizer()


def _model(vocab_size: int = 71) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config)


def _pairs() -> Pairs:
    return load_pairs("cmudict", "validation[:9]", source="word", target="phonemes")


def test_a_model_is_measured_and_left_as_it_was() -> None:
    model, told = _model(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = {"metrics": list(METRICS), "max_source_tokens": 30, "max_new_tokens": 6, "batch_size": 4, "seed": 1}
    result = evaluate_model(
        model, TOKENIZER, _pairs(), **options, on_batch=lambda done, total: told.append((done, total))
    )
    assert list(result.figures)[:4] == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert len(result.figures) == 18
    assert len(result.predictions) == result.collapse.rows == 9
    assert result.figures["mean_length"].value == pytest.approx(
        sum(prediction.num_tokens for prediction in result.predictions) / 9
    )
    assert result.collapse.truncated == sum(prediction.truncated for prediction in result.predictions)
    assert result.seconds > 0
    assert told == [(4, 9), (8, 9), (9, 9)]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    again = evaluate_model(model, TOKENIZER, _pairs(), **options)
    assert (again.figures, again.predictions) == (result.figures, result.predictions)


def test_a_misspelt_metric_costs_no_generation() -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError("generated before the metrics were checked")

    with pytest.raises(SecateurError, match='Did you mean "per"'):
        evaluate_model(
            _model(), TOKENIZER, _pairs(), metrics=["perr"], max_source_tokens=30, max_new_tokens=3, on_batch=never
        )


def test_foreign_tokenizers_and_empty_sets_are_refused() -> None:
    options = {"metrics": ["per"], "max_source_tokens": 30, "max_new_tokens": 3}
    with pytest.raises(DataError, match="belongs to another model"):
        evaluate_model(_model(vocab_size=10), TOKENIZER, _pairs(), **options)
    with pytest.raises(DataError, match="no rows to evaluate on"):
        evaluate_model(_model(), TOKENIZER, Pairs((), ()), **options)


def test_predictions_are_written_one_object_a_line(tmp_path: Path) -> None:
    pairs = Pairs(("do: ü\u2028", "b"), (("x", "y"), ("z",)))
    path = write_predictions(
        tmp_path / "new" / "predictions.jsonl", pairs, [Prediction("ü\n", 2, False), Prediction("", 0, True)]
    )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert rows == [
        {"source": "do: ü\u2028", "references": ["x", "y"], "prediction": "ü\n", "num_tokens": 2, "truncated": False},
        {"source": "b", "references": ["z"], "prediction": "", "num_tokens": 0, "truncated": True},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["predictions.jsonl"]


def test_the_prefix_is_no_part_of_a_source_for_metrics() -> None:
    pairs = Pairs(tuple(f"A a {source}" for source in _pairs().sources), _pairs().references)
    options = {"metrics": ["novelty"], "max_source_tokens": 30, "max_new_tokens": 6}
    result = evaluate_model(_model(), TOKENIZER, pairs, **options, prefix="A a ")
    expected = score_predictions(["novelty"], result.predictions, pairs.references, sources=_pairs().sources, seed=0)
    assert result.figures == expected


def test_predictions_read_back(tmp_path: Path) -> None:
    pairs = Pairs(("do: ü\u2028", "b"), (("x", "y"), ("z",)))
    predictions = [Prediction("ü\n", 2, False), Prediction("", 0, True)]
    assert read_predictions(write_predictions(tmp_path / "p.jsonl", pairs, predictions)) == (pairs, predictions)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no predictions"),
        ('{"source": "a"}', "line 1 is no prediction: 'references' is None"),
        ('{"source": "a", "prediction": "b", "num_tokens": 1, "truncated": false}', "line 1 has no references"),
        ('{"source": 1, "references": ["x"], "prediction": "b", "num_tokens": 1, "truncated": false}', "'source' is 1"),
        ('{"source": "a", "references": [], "prediction": "b", "num_tokens": 1, "truncated": false}', "'references'"),
        ('{"source": "a", "references": "x", "prediction": "b", "num_tokens": 1, "truncated": false}', "'references'"),
        ('{"source": "a", "references": ["x"], "prediction": "b", "num_tokens": true, "truncated": false}', "num_tok"),
        (
            '{"source": "a", "references": ["x"], "prediction": "b", "num_tokens": 1, "truncated": 0}',
            "'truncated' is 0",
        ),
        ("[]", "must be an object"),
        ("{", "not JSON"),
    ],
)
def test_other_files_are_no_predictions(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(DataError, match=f"p.jsonl.*{message}"):
        read_predictions(tmp_path / "p.jsonl")


def test_no_file_of_predictions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.jsonl: cannot be read: No such file"):
        read_predictions(tmp_path / "none.jsonl")
