"""The pronouncing dictionary: its split, its texts and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, T5Config

from secateur.errors import DataError
from secateur.tasks.cmudict import LETTERS, PHONEMES, SPECIALS, SPLITS, build_tokenizer, load_cmudict, split_of


def test_splits_share_no_word_and_have_the_stated_sizes() -> None:
    words = {split: load_cmudict(split)["word"] for split in SPLITS}
    everything = [word for split in SPLITS for word in words[split]]
    assert len(set(everything)) == len(everything) > 100_000
    shares = {split: len(words[split]) / len(everything) for split in SPLITS}
    assert shares["validation"] == pytest.approx(0.02, abs=0.003)
    assert shares["test"] == pytest.approx(0.05, abs=0.003)
    assert all(split_of(word) == split for split in SPLITS for word in words[split])


def test_the_split_of_a_word_never_changes() -> None:
    # Written down once: another rule would be another test set, and old figures would no longer compare.
    assert [split_of(word) for word in ("woodke", "horton", "bahnhof", "kolb", "florid")] == [
        "test",
        "test",
        "validation",
        "validation",
        "train",
    ]
    assert load_cmudict("test")["word"][:2] == ["woodke", "horton"]


def test_rows_are_a_random_sample_in_a_fixed_order() -> None:
    columns = load_cmudict("test")
    assert columns == load_cmudict("test")
    assert columns["word"] != sorted(columns["word"])
    assert len({word[0] for word in columns["word"][:300]}) > 20


def test_every_pronunciation_is_known_phonemes_without_stress_once() -> None:
    columns = load_cmudict("validation")
    for word, pronunciations in zip(columns["word"], columns["phonemes"], strict=True):
        assert set(word) <= set(LETTERS)
        assert 1 <= len(pronunciations) == len(set(pronunciations))
        assert all(set(text.split(" ")) <= set(PHONEMES) for text in pronunciations)
    assert max(map(len, columns["phonemes"])) > 1


def test_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="no split 'dev'"):
        load_cmudict("dev")


def test_tokenizer_has_the_stated_ids() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(SPECIALS) + len(LETTERS) + len(PHONEMES) == 71
    assert tokenizer.convert_ids_to_tokens(list(range(71))) == [*SPECIALS, *LETTERS, *PHONEMES]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("a é1").input_ids == [3, 2, 2, 1]


def test_no_word_or_pronunciation_has_an_unknown_token_and_phonemes_decode_back() -> None:
    tokenizer = build_tokenizer()
    columns = load_cmudict("validation")
    targets = [text for row in columns["phonemes"] for text in row]
    sources = tokenizer(columns["word"]).input_ids
    labels = tokenizer(text_target=targets).input_ids
    assert not any(tokenizer.unk_token_id in row for row in [*sources, *labels])
    assert [len(row) for row in sources] == [len(word) + 1 for word in columns["word"]]
    assert tokenizer.batch_decode(labels, skip_special_tokens=True) == targets


@pytest.mark.parametrize("with_model", [False, True])
def test_tokenizer_survives_saving_also_beside_a_t5(tmp_path: Path, with_model: bool) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    if with_model:  # AutoTokenizer must not take it for T5's own
        T5Config(vocab_size=71).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("abandon", "it's", "AH B AE N D AH N", "x-é"):
        assert loaded(text) == tokenizer(text)
        assert loaded.decode(loaded(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    assert (loaded.pad_token_id, loaded.eos_token_id, len(loaded)) == (0, 1, 71)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "WordLevel"
