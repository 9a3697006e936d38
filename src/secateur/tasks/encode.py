"""Text pairs to token ids, and rows to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from secateur.errors import DataError
from secateur.tasks.pairs import Pairs
from secateur.tasks.sampler import IGNORED, length_keys


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, *, as_target: bool = False
) -> tuple[list[list[int]], int]:
    """Turn texts into token ids, cut to a length with the tokenizer's end token kept.

    Args:
        tokenizer: a Hugging Face tokenizer.
        texts: any number, none included.
        max_tokens: the longest row, special tokens counted, at least 1.
        as_target: use the tokenizer's target side, where it has one.

    Returns:
        The rows of ids, and how many of them were cut.

    Raises:
        DataError: a text gave no token at all.
    """
    if not texts:
        return [], 0

    def ids(some: Sequence[str], **options: Any) -> list[list[int]]:
        given = {"text_target": list(some)} if as_target else {"text": list(some)}
        return tokenizer(**given, add_special_tokens=True, return_attention_mask=False, verbose=False, **options)[
            "input_ids"
        ]

    rows = ids(texts, truncation=False)
    long = [index for index, row in enumerate(rows) if len(row) > max_tokens]
    if long:  # a second pass over these few: only the tokenizer knows which special tokens to keep
        cut = ids([texts[index] for index in long], truncation=True, max_length=max_tokens)
        for index, row in zip(long, cut, strict=True):
            rows[index] = row
    empty = next((index for index, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise DataError(
            f"row {empty + 1}: the tokenizer makes no token of {texts[empty][:60]!r}. Remove the row, or use a "
            "tokenizer that ends texts with an end token."
        )
    return rows, len(long)


class EncodedPairs(Dataset[dict[str, list[int]]]):
    """Token ids of training rows: items are `{"input_ids": [...], "labels": [...]}`, not padded.

    Args:
        input_ids: one list of source ids a row.
        labels: one list of target ids a row.
        num_cut_sources: how many sources were longer than allowed.
        num_cut_targets: how many targets were longer than allowed.
    """

    def __init__(
        self,
        input_ids: Sequence[list[int]],
        labels: Sequence[list[int]],
        *,
        num_cut_sources: int = 0,
        num_cut_targets: int = 0,
    ) -> None:
        self.input_ids = input_ids
        self.labels = labels
        self.num_cut_sources = num_cut_sources
        self.num_cut_targets = num_cut_targets

    @property
    def length_keys(self) -> list[int]:
        """What the sampler orders the rows by: the lengths of both sides."""
        return length_keys([len(row) for row in self.input_ids], [len(row) for row in self.labels])

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def encode(
    pairs: Pairs, tokenizer: Any, *, max_source_tokens: int, max_target_tokens: int, vocab_size: int | None = None
) -> EncodedPairs:
    """Turn pairs into training rows: one row per reference.

    Args:
        pairs: texts, prefix applied.
        tokenizer: a Hugging Face tokenizer.
        max_source_tokens: the longest source, end token counted.
        max_target_tokens: the longest target, end token counted.
        vocab_size: rows of the model's embedding table, to check the ids against.

    Returns:
        The rows, in the order of `pairs.rows()`.

    Raises:
        DataError: the tokenizer gives ids that the model has no row for: it is another model's.
    """
    rows = pairs.rows()
    sources, num_cut_sources = tokenize(tokenizer, [source for source, _ in rows], max_source_tokens)
    targets, num_cut_targets = tokenize(tokenizer, [target for _, target in rows], max_target_tokens, as_target=True)
    check_ids([*sources, *targets], vocab_size)
    return EncodedPairs(sources, targets, num_cut_sources=num_cut_sources, num_cut_targets=num_cut_targets)


def check_ids(rows: Sequence[Sequence[int]], vocab_size: int | None) -> None:
    """Refuse ids that a model has no embedding for.

    Args:
        rows: token ids.
        vocab_size: rows of the embedding table; None checks nothing.

    Raises:
        DataError: an id is too large.

    >>> check_ids([[1, 2]], 3)
    """
    largest = max((max(row) for row in rows if row), default=-1)
    if vocab_size is not None and largest >= vocab_size:
        raise DataError(
            f"the tokenizer gives the id {largest}, the model embeds {vocab_size} tokens (0 to {vocab_size - 1}). "
            "The tokenizer belongs to another model: load both from one folder."
        )


def check_tokenizer(tokenizer: Any, config: Any) -> None:
    """Refuse a tokenizer that ends or pads texts with other tokens than its model does.

    Args:
        tokenizer: a Hugging Face tokenizer.
        config: the model's configuration; what it leaves open is not checked.

    Raises:
        DataError: they differ, so the tokenizer belongs to another model.
    """
    faults = []
    for name, what in (("eos_token_id", "ends a text with"), ("pad_token_id", "pads with")):
        mine, theirs = getattr(tokenizer, name, None), getattr(config, name, None)
        wanted = theirs if isinstance(theirs, list | tuple) else [theirs]
        if mine is not None and theirs is not None and mine not in wanted:
            faults.append(f"it {what} the id {mine}, the model {what} {theirs}")
    if faults:
        raise DataError(
            f"the tokenizer does not fit the model: {'; '.join(faults)}. Load both from one folder, or set the ids in "
            "config.json."
        )


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Pad rows on the right to the longest of them.

    Args:
        rows: token ids, at least one row.
        value: what the free places hold.

    Returns:
        int64 (rows, longest).

    >>> pad([[1], [2, 3]], 0).tolist()
    [[1, 0], [2, 3]]
    """
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


def attention_mask(rows: Sequence[Sequence[int]]) -> Tensor:
    """Say which places of the padded rows hold tokens: from the lengths, for a text may hold the padding id itself.

    Args:
        rows: token ids, at least one row.

    Returns:
        int64 (rows, longest), 1 = token.

    >>> attention_mask([[1], [0, 3]]).tolist()
    [[1, 0], [1, 1]]
    """
    return pad([[1] * len(row) for row in rows], 0)


class Collator:
    """Makes a training batch: pads to the batch's longest source and longest target.

    Args:
        pad_token_id: what fills the sources; labels are filled with -100.

    >>> batch = Collator(0)([{"input_ids": [5, 1], "labels": [7]}, {"input_ids": [1], "labels": [8, 1]}])
    >>> batch["labels"].tolist(), batch["attention_mask"].tolist()
    ([[7, -100], [8, 1]], [[1, 1], [1, 0]])
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return input_ids (B, S), attention_mask (B, S) and labels (B, T), all int64."""
        sources = [row["input_ids"] for row in rows]
        return {
            "input_ids": pad(sources, self.pad_token_id),
            "attention_mask": attention_mask(sources),
            "labels": pad([row["labels"] for row in rows], IGNORED),
        }
