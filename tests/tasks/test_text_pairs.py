"""Two texts a row: the tokenizer's own pairs, and what plain transformers makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
)

from classes import VOCABULARY
from secateur.errors import DataError
from secateur.evaluation.classify import classify
from secateur.tasks.encode import Collator, encode, tokenize, tokenize_sources
from secateur.tasks.labels import encode_labelled
from secateur.tasks.pairs import Pairs, load_pairs, pairs_from_rows, with_prefix, without_prefix
from secateur.tasks.reading import model_inputs, reads_token_types
from secateur.tasks.sampler import IGNORED, OwnRows
from secateur.tasks.vocabulary import count_ids

WORDS = {token: index for index, token in enumerate(VOCABULARY)}
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *VOCABULARY[5:])
TOKENIZERS: dict[str, Any] = {
    "bert": BertTokenizer(vocab=WORDS),
    "distilbert": DistilBertTokenizer(vocab=WORDS),
    "roberta": RobertaTokenizer(vocab={token: index for index, token in enumerate(ROBERTA)}, merges=[]),
}
TEXT = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=9).map(" ".join)
SOURCES = (("a b c", "d"), ("e", "f g h i j k"), ("l m n o p q r s", "t u v w x y z a"), ("a", "a"))
PAIRS = Pairs(SOURCES, tuple((label,) for label in "0120"))
LABELS = ("0", "1", "2")
ROOM = 12


def net(name: str) -> Any:
    """A classifier of two layers whose answers depend on every input."""
    shared: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 40, "num_labels": 3}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        if name == "bert":
            model: Any = BertForSequenceClassification(BertConfig(**shared, **sizes))
        elif name == "roberta":
            model = RobertaForSequenceClassification(RobertaConfig(**shared, **sizes, type_vocab_size=1))
        else:
            config = DistilBertConfig(**shared, dim=16, n_layers=2, n_heads=4, hidden_dim=20)
            model = DistilBertForSequenceClassification(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.4)
    return model.eval()


def plain(tokenizer: Any, sources: Any = SOURCES, **options: Any) -> Any:
    """What a user of transformers writes."""
    return tokenizer(*map(list, zip(*sources, strict=True)), truncation="longest_first", max_length=ROOM, **options)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(sources=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_tokens_are_those_of_the_tokenizers_own_pairs(name: str, sources: list[tuple[str, str]]) -> None:
    tokenizer = TOKENIZERS[name]
    found, wanted = tokenize_sources(tokenizer, sources, ROOM), plain(tokenizer, sources)
    assert found.input_ids == wanted["input_ids"]
    assert found.token_type_ids == wanted.get("token_type_ids")
    assert (found.token_type_ids is None) == (name != "bert")
    whole = tokenizer(*map(list, zip(*sources, strict=True)))["input_ids"]
    assert found.num_cut == sum(len(row) > ROOM for row in whole)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_logits_are_those_of_plain_transformers(name: str) -> None:
    tokenizer, model = TOKENIZERS[name], net(name)
    rows = encode_labelled(PAIRS, tokenizer, LABELS, max_source_tokens=ROOM, vocab_size=40)
    batch = Collator(tokenizer.pad_token_id)([rows[index] for index in range(len(rows))])
    assert ("token_type_ids" in batch) == (name == "bert")
    with torch.no_grad():
        ours = model(**model_inputs(model, batch)).logits
        theirs = model(**plain(tokenizer, padding=True, return_tensors="pt")).logits
    assert torch.equal(ours, theirs)
    named = classify(model, tokenizer, SOURCES, max_source_tokens=ROOM, batch_size=len(SOURCES))
    shares, classes = theirs.double().softmax(-1).max(-1)
    assert [item.text for item in named] == [LABELS[index] for index in classes.tolist()]
    for item, share in zip(named, shares.tolist(), strict=True):  # the batch is in another order
        assert item.probability is not None
        assert math.isclose(item.probability, share, rel_tol=1e-6)
    if name == "bert":
        with torch.no_grad():
            blind = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert not torch.allclose(blind, ours, atol=1e-3)


def test_a_model_without_token_types_is_given_none() -> None:
    batch = Collator(0)([encode_labelled(PAIRS, TOKENIZERS["bert"], LABELS, max_source_tokens=ROOM)[0]])
    assert {name: reads_token_types(net(name)) for name in TOKENIZERS} == {
        "bert": True, "distilbert": False, "roberta": False,
    }  # fmt: skip
    for name in ("distilbert", "roberta"):
        assert set(model_inputs(net(name), batch)) == {"input_ids", "attention_mask"}


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_one_text_a_row_is_read_as_before(texts: list[str]) -> None:
    tokenizer = TOKENIZERS["bert"]
    found = tokenize_sources(tokenizer, texts, ROOM)
    assert (found.input_ids, found.num_cut) == tokenize(tokenizer, texts, ROOM)
    assert found.token_type_ids is None
    rows = encode_labelled(Pairs(tuple(texts), (("0",),) * len(texts)), tokenizer, LABELS, max_source_tokens=ROOM)
    assert set(rows[0]) == {"input_ids", "labels"}
    assert set(Collator(0)([rows[0]])) == {"input_ids", "attention_mask", "labels"}


def test_the_hash_of_one_text_a_row_has_not_changed() -> None:
    single = Pairs(("a", "b"), (("x",), ("y",)))
    assert single.fingerprint() == "3a00ce4957d17edfa510d3c097175244c8be863fe673a2d91bc91a770bf901b6"
    two = Pairs((("a", "b"),), (("x",),))
    assert two.fingerprint() != Pairs(("a",), (("b", "x"),)).fingerprint()
    assert two.fingerprint() != Pairs((("a b", ""),), (("x",),)).fingerprint()


def test_a_row_with_nothing_to_learn_has_what_all_rows_have() -> None:
    rows = encode_labelled(PAIRS, TOKENIZERS["bert"], LABELS, max_source_tokens=ROOM)
    empty = OwnRows(rows)[None]
    assert empty == rows[0] | {"labels": [IGNORED]}
    assert Collator(0)([rows[1], empty])["token_type_ids"].shape[0] == 2


def test_special_tokens_without_room_are_told() -> None:
    with pytest.raises(DataError, match="max_source_tokens: 2 is not even room for the special tokens"):
        tokenize_sources(TOKENIZERS["bert"], SOURCES, 2)
    assert tokenize_sources(TOKENIZERS["bert"], SOURCES, 3).input_ids == [[2, 3, 3]] * 4


def test_seq2seq_reads_no_two_texts() -> None:
    with pytest.raises(DataError, match="two texts each, which classification alone reads"):
        encode(PAIRS, TOKENIZERS["bert"], max_source_tokens=9, max_target_tokens=9)


def test_counted_tokens_are_those_of_both_texts() -> None:
    counts = count_ids(TOKENIZERS["bert"], SOURCES, (), 40)
    assert counts.sum() == sum(map(len, TOKENIZERS["bert"](*map(list, zip(*SOURCES, strict=True)))["input_ids"]))
    assert counts[WORDS["[SEP]"]] == 2 * len(SOURCES)


def test_files_and_rows_give_both_columns_and_the_prefix_stands_before_the_first(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("premise,hypothesis,label\na,b,1\nc,d,0\n")
    columns = ("premise", "hypothesis")
    found = load_pairs(tmp_path, "train", source=columns, target="label", prefix="x ", labels=True)
    assert found.sources == (("x a", "b"), ("x c", "d"))
    rows = [{"premise": "a", "hypothesis": "b", "label": 1}, {"premise": "c", "hypothesis": "d", "label": 0}]
    assert pairs_from_rows(rows, source=columns, target="label", prefix="x ", labels=True) == found
    assert [without_prefix(source, "x ") for source in found.sources] == [("a", "b"), ("c", "d")]
    assert with_prefix(("a", "b"), "x ") == found.sources[0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"premise": "a", "label": 1}, "rows: no column 'hypothesis'. Columns there: premise, label."),
        ({"premise": "a", "hypothesis": None, "label": 1}, "row 1: column 'hypothesis' must be text, and is missing."),
        ({"premise": " ", "hypothesis": "b", "label": 1}, "row 1: column 'premise' is empty."),
    ],
)
def test_a_text_that_is_missing_is_told(row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError) as caught:
        pairs_from_rows([row], source=("premise", "hypothesis"), target="label", labels=True)
    assert told in str(caught.value)
