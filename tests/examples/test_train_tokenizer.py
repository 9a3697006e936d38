"""The tokenizer that is trained, and the one that comes with the Debian recipes, are what a T5 and denoising need."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import train_tokenizer
from train_tokenizer import NUM_EXTRA_IDS, build_tokenizer, main, train_pieces
from transformers import AutoConfig, AutoTokenizer

from secateur.errors import DataError, SecateurError
from secateur.tasks.corrupt import sentinels_of

ROOT = Path(__file__).parents[2]
START = ROOT / "recipes" / "debian" / "start"
TEXTS = [f"prune the {word}\n{word}s bloom, {word} by {word}" for word in ("rose", "hedge", "vine", "bough")]


def test_its_examples_hold() -> None:
    result = doctest.testmod(train_tokenizer)
    assert result.attempted >= 1 and not result.failed


def test_the_start_that_comes_along_is_a_t5s() -> None:
    tokenizer = AutoTokenizer.from_pretrained(START)
    config = AutoConfig.from_pretrained(START)
    assert len(tokenizer) == config.vocab_size == 8192
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert sentinels_of(tokenizer) == list(range(8191, 8091, -1))
    text = "A small tool (fast & safe) to prune the library's trees, v1.2."
    ids = tokenizer(f"  {text}  ").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[-1] == 1 and 2 not in ids
    assert tokenizer("a\n\nb").input_ids == tokenizer("a \n b").input_ids
    assert tokenizer.tokenize("a\nb") == ["\u2581a", "\u2581\n", "\u2581b"]


def test_what_comes_along_is_built_as_the_example_builds_it() -> None:
    stored = json.loads((START / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = [tuple(piece) for piece in stored["model"]["vocab"]]
    assert json.loads(build_tokenizer(pieces).to_str()) == stored
    assert len(pieces) == len({piece for piece, _ in pieces}) == 8192 - NUM_EXTRA_IDS


def test_training_twice_gives_equal_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("sentencepiece")
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text, "summary": text[:9]}) + "\n" for text in TEXTS))
    for out in ("a", "b"):
        arguments = [str(data), "--source", "text", "--target", "summary", "--vocabulary", "130"]
        assert main([*arguments, "--out", str(tmp_path / out)]) == 0
    assert "130 ids" in capsys.readouterr().out
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert len(tokenizer) == 130 and len(sentinels_of(tokenizer)) == NUM_EXTRA_IDS
    assert tokenizer.tokenize(TEXTS[0]).count("\u2581\n") == 1
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text.replace("\n", " \n ")
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_faults_are_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    columns = ["--source", "text", "--target", "summary", "--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "none.jsonl"), *columns]) == 1
    told = "no such file or folder. In a recipe a path counts from the recipe's folder."
    assert capsys.readouterr().err == f"{tmp_path / 'none.jsonl'}: {told}\n"
    with pytest.raises(SystemExit):
        main(["data", *columns, "--vocabulary", "103"])
    assert "--vocabulary 103 leaves no piece" in capsys.readouterr().err
    pytest.importorskip("sentencepiece")
    with pytest.raises(DataError, match=r"No vocabulary of 5,000 pieces .*: Vocabulary size too high"):
        train_pieces(TEXTS, 5000)
    monkeypatch.setitem(train_tokenizer.sys.modules, "sentencepiece", None)
    with pytest.raises(SecateurError, match="pip install sentencepiece"):
        train_pieces(TEXTS, 40)
