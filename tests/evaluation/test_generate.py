"""What a model writes depends on its weights and our arguments: not on batches, order, flags or stored settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from secateur.errors import DataError, SecateurError
from secateur.evaluation.engine import Engine, Generated
from secateur.evaluation.generate import HuggingFaceEngine, Prediction, predict
from secateur.tasks.cmudict import build_tokenizer, load_cmudict

TOKENIZER = build_tokenizer()
SOURCES = load_cmudict("validation")["word"][:37]


def tiny_t5(seed: int = 1) -> T5ForConditionalGeneration:
    """A random T5 whose outputs differ between sources (large weights) and sometimes end (a larger row for the end)."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(TOKENIZER), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
        initializer_factor=4.0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.shared.weight[TOKENIZER.eos_token_id] *= 2.0
    return model


MODEL = tiny_t5()


def _rows(num_rows: int = 37) -> list[list[int]]:
    return TOKENIZER(SOURCES[:num_rows]).input_ids


class Echo:
    """Writes its source back, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def generate(
        self,
        input_ids: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        num_beams: int = 1,
        return_scores: bool = False,
    ) -> list[Generated]:
        self.batches.append([len(row) for row in input_ids])
        return [Generated(list(row[:-1])[:max_new_tokens], len(row) > max_new_tokens) for row in input_ids]


def _predict(engine: Engine, **options: Any) -> list[Prediction]:
    return predict(engine, TOKENIZER, SOURCES, **{"max_source_tokens": 40, "max_new_tokens": 40, **options})


def test_order_is_restored_and_batches_go_from_long_to_short() -> None:
    engine, told = Echo(), []
    predictions = _predict(engine, batch_size=5, on_batch=lambda done, total: told.append((done, total)))
    assert [prediction.text.replace(" ", "") for prediction in predictions] == SOURCES
    assert [prediction.num_tokens for prediction in predictions] == [len(word) for word in SOURCES]
    lengths = [length for batch in engine.batches for length in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert told == [(min(done, 37), 37) for done in range(5, 41, 5)]


def test_no_sources_are_no_predictions() -> None:
    assert predict(Echo(), TOKENIZER, [], max_source_tokens=9, max_new_tokens=9) == []


def test_padding_that_a_model_writes_is_not_counted() -> None:
    class Broken(Echo):
        def generate(self, input_ids: Sequence[Sequence[int]], **_: Any) -> list[Generated]:
            return [Generated([0, 0, 3], True) for _ in input_ids]

    assert _predict(Broken())[0] == Prediction("a", 1, True)


def test_a_foreign_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match="another model"):
        _predict(Echo(), vocab_size=10)


def test_a_full_memory_is_told_with_the_batch() -> None:
    class Full(Echo):
        def generate(self, input_ids: Sequence[Sequence[int]], **_: Any) -> list[Generated]:
            raise torch.OutOfMemoryError("no")

    with pytest.raises(SecateurError, match=r"batch of 16 sources.*Lower evaluation\.batch_size"):
        _predict(Full())


@pytest.mark.parametrize("num_beams", [1, 3])
def test_batches_do_not_change_what_is_written(num_beams: int) -> None:
    engine = HuggingFaceEngine(MODEL, TOKENIZER)
    alone = [engine.generate([row], max_new_tokens=12, num_beams=num_beams)[0] for row in _rows()]
    # The rest says something only if the outputs differ and some end early.
    assert len({tuple(row.tokens) for row in alone}) > 20
    assert len({token for row in alone for token in row.tokens}) > 20
    assert {row.truncated for row in alone} == {True, False}
    for batch_size in (7, 37):
        predictions = _predict(engine, max_new_tokens=12, num_beams=num_beams, batch_size=batch_size)
        assert [prediction.text for prediction in predictions] == [
            TOKENIZER.decode(row.tokens, skip_special_tokens=True) for row in alone
        ]
        assert [prediction.truncated for prediction in predictions] == [row.truncated for row in alone]


def test_outputs_end_before_the_end_token() -> None:
    outputs = HuggingFaceEngine(MODEL, TOKENIZER).generate(_rows(), max_new_tokens=12)
    for row in outputs:
        assert TOKENIZER.eos_token_id not in row.tokens
        assert len(row.tokens) == 12 if row.truncated else len(row.tokens) < 12
        assert row.score is None


def test_no_text_ends_before_it_may() -> None:
    engine = HuggingFaceEngine(MODEL, TOKENIZER)
    free = engine.generate(_rows(), max_new_tokens=12)
    assert any(len(row.tokens) < 4 for row in free)
    for fixed, row in zip(engine.generate(_rows(), max_new_tokens=12, min_new_tokens=4), free, strict=True):
        assert 4 <= len(fixed.tokens) <= 12
        assert fixed == row or len(row.tokens) < 4
    exact = engine.generate(_rows(), max_new_tokens=4, min_new_tokens=4)
    assert {(len(row.tokens), row.truncated) for row in exact} == {(4, True)}


@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_are_log_probabilities_of_what_was_written(num_beams: int) -> None:
    rows = _rows(5)
    outputs = HuggingFaceEngine(MODEL, TOKENIZER).generate(
        rows, max_new_tokens=12, num_beams=num_beams, return_scores=True
    )
    for row, output in zip(rows, outputs, strict=True):
        labels = torch.tensor([output.tokens + ([] if output.truncated else [TOKENIZER.eos_token_id])])
        with torch.no_grad():
            loss = MODEL(input_ids=torch.tensor([row]), labels=labels).loss  # mean over the tokens
        assert output.score == pytest.approx(-float(loss) * labels.numel(), rel=1e-4)  # fp32 sums


def test_settings_stored_with_a_checkpoint_do_not_leak_in() -> None:
    model = tiny_t5()
    expected = HuggingFaceEngine(MODEL, TOKENIZER).generate(_rows(8), max_new_tokens=12)
    stored = GenerationConfig(
        max_length=3, num_beams=4, no_repeat_ngram_size=1, repetition_penalty=5.0, forced_bos_token_id=9,
        do_sample=True, min_length=11, suppress_tokens=[40], length_penalty=3.0, eos_token_id=1, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    model.generation_config = stored
    before = stored.to_dict()
    assert HuggingFaceEngine(model, TOKENIZER).generate(_rows(8), max_new_tokens=12) == expected
    assert model.generation_config is stored
    assert stored.to_dict() == before


def test_every_training_flag_is_given_back() -> None:
    model = tiny_t5().train()
    model.encoder.eval()  # a frozen part
    flags = [module.training for module in model.modules()]
    assert set(flags) == {True, False}
    outputs = HuggingFaceEngine(model, TOKENIZER).generate(_rows(8), max_new_tokens=12)
    assert [module.training for module in model.modules()] == flags
    assert outputs == HuggingFaceEngine(MODEL, TOKENIZER).generate(_rows(8), max_new_tokens=12)  # dropout was off


def test_flags_and_settings_come_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_t5().train()
    stored = model.generation_config

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(KeyboardInterrupt):
        HuggingFaceEngine(model, TOKENIZER).generate(_rows(2), max_new_tokens=3)
    assert model.training
    assert model.generation_config is stored


def test_generation_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    HuggingFaceEngine(MODEL, TOKENIZER).generate(_rows(4), max_new_tokens=5, num_beams=2)
    assert torch.equal(state, torch.get_rng_state())


def test_special_tokens_come_from_the_model_then_from_the_tokenizer() -> None:
    model = tiny_t5()
    model.generation_config = GenerationConfig()
    model.config.eos_token_id = model.config.pad_token_id = model.config.decoder_start_token_id = None
    engine = HuggingFaceEngine(model, TOKENIZER)
    assert (engine.end_ids, engine.pad_id, engine.start_id) == (frozenset({1}), 0, 0)
    with pytest.raises(SecateurError, match="set eos_token_id and pad_token_id"):
        HuggingFaceEngine(model)


def test_several_end_tokens_all_end() -> None:
    model = tiny_t5()
    model.generation_config.eos_token_id = [1, 2]
    for row in HuggingFaceEngine(model, TOKENIZER).generate(_rows(), max_new_tokens=12):
        assert not {1, 2} & set(row.tokens)
