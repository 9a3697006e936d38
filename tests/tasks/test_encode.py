"""Encoding keeps rows, order and end tokens; batches hold every token and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from secateur.errors import DataError
from secateur.tasks.cmudict import build_tokenizer
from secateur.tasks.encode import Collator, attention_mask, check_ids, check_tokenizer, encode, pad, tokenize
from secateur.tasks.pairs import Pairs

TOKENIZER = build_tokenizer(max_length=4)  # shorter than the texts: no warning may come of it
PAIRS = Pairs(("cat", "tomatoes", "a"), (("K AE T",), ("T AH M", "T AH M AA T OW Z"), ("AH",)))


def test_one_row_per_reference_in_order_with_the_end_token() -> None:
    rows = encode(PAIRS, TOKENIZER, max_source_tokens=20, max_target_tokens=20, vocab_size=71)
    assert len(rows) == 4
    assert [TOKENIZER.decode(rows[i]["labels"], skip_special_tokens=True) for i in range(4)] == [
        target for _, target in PAIRS.rows()
    ]
    assert all(rows[i][key][-1] == TOKENIZER.eos_token_id for i in range(4) for key in ("input_ids", "labels"))
    assert list(map(len, rows.input_ids)) == [4, 9, 9, 2]
    assert (rows.num_cut_sources, rows.num_cut_targets) == (0, 0)


def test_long_rows_are_cut_counted_and_still_end() -> None:
    rows = encode(PAIRS, TOKENIZER, max_source_tokens=4, max_target_tokens=5)
    assert list(map(len, rows.input_ids)) == [4, 4, 4, 2]
    assert (rows.num_cut_sources, rows.num_cut_targets) == (2, 1)
    whole = TOKENIZER("tomatoes").input_ids
    assert rows[1]["input_ids"] == [*whole[:3], TOKENIZER.eos_token_id]
    assert rows[2]["labels"][-1] == TOKENIZER.eos_token_id
    assert len(rows[2]["labels"]) == 5


def test_a_foreign_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match=r"gives the id \d+, the model embeds 40 tokens"):
        encode(PAIRS, TOKENIZER, max_source_tokens=20, max_target_tokens=20, vocab_size=40)
    check_ids([], 1)
    check_ids([[10**6]], None)


def test_nothing_to_encode_is_nothing() -> None:
    assert tokenize(TOKENIZER, [], 5) == ([], 0)


def test_a_text_without_any_token_is_refused() -> None:
    class Silent:
        def __call__(self, **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[3], []]}

    with pytest.raises(DataError, match="row 2: the tokenizer makes no token"):
        tokenize(Silent(), ["a", " "], 5)


@given(st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=9), min_size=1, max_size=6))
def test_padding_is_undone_by_the_mask(rows: list[list[int]]) -> None:
    padded, mask = pad(rows, 0), attention_mask(rows)
    assert padded.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [row[kept.bool()].tolist() for row, kept in zip(padded, mask, strict=True)] == rows


def test_collated_batches_hold_ignored_labels_where_padded() -> None:
    rows = encode(PAIRS, TOKENIZER, max_source_tokens=20, max_target_tokens=20)
    batch = next(iter(DataLoader(rows, batch_size=4, collate_fn=Collator(TOKENIZER.pad_token_id))))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["input_ids"].shape == (4, 9)
    assert batch["labels"].shape == (4, 8)
    assert [row[row != -100].tolist() for row in batch["labels"]] == rows.labels
    assert batch["attention_mask"].sum(1).tolist() == list(map(len, rows.input_ids))


def test_a_tokenizer_with_other_special_tokens_is_refused() -> None:
    config = SimpleNamespace(eos_token_id=1, pad_token_id=0)
    check_tokenizer(SimpleNamespace(eos_token_id=1, pad_token_id=0), config)
    check_tokenizer(SimpleNamespace(eos_token_id=1, pad_token_id=None), SimpleNamespace(eos_token_id=[2, 1]))
    with pytest.raises(
        DataError, match="ends a text with the id 2, the model ends a text with 1; it pads with the id 3"
    ):
        check_tokenizer(SimpleNamespace(eos_token_id=2, pad_token_id=3), config)
