"""Sources and targets to token ids, and rows to padded batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from secateur.errors import DataError
from secateur.tasks.pairs import Pairs, Source, single_texts, texts_of
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
    side = "text_target" if as_target else "text"
    found = _tokenized(tokenizer, texts, max_tokens, lambda some: {side: list(some)})
    return found.input_ids, found.num_cut


@dataclass(frozen=True)
class SourceTokens:
    """What a model reads of its sources.

    Args:
        input_ids: one list of ids a source, not padded.
        token_type_ids: of which text each token is, 0 or 1; None for sources of one text, and where the tokenizer does
            not tell.
        num_cut: how many sources were longer than allowed.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    num_cut: int

    def batch(self, indices: Sequence[int], padding: int) -> dict[str, Tensor]:
        """Pad some of the rows; see `source_inputs`."""
        types = self.token_type_ids
        return source_inputs(
            [self.input_ids[index] for index in indices], padding, types and [types[index] for index in indices]
        )


def tokenize_sources(tokenizer: Any, sources: Sequence[Source], max_tokens: int) -> SourceTokens:
    """Turn sources into token ids; two texts become one row, with what the tokenizer puts between and around them.

    Args:
        tokenizer: a Hugging Face tokenizer.
        sources: any number, prefix applied; all of one text, or all of two.
        max_tokens: the longest row, special tokens counted, at least 1. Of two texts the longer one is cut first.

    Returns:
        The rows; the same as `tokenize` gives for sources of one text.

    Raises:
        DataError: a source gave no token at all, or there is no room for two texts.
    """
    if not sources or isinstance(sources[0], str):
        rows, num_cut = tokenize(tokenizer, single_texts(sources), max_tokens)
        return SourceTokens(rows, None, num_cut)
    found = _tokenized(tokenizer, sources, max_tokens, tokenizer_texts)
    longest = max(map(len, found.input_ids))
    if longest > max_tokens:  # below the number of its special tokens a tokenizer cuts nothing, and does not say so
        raise DataError(
            f"max_source_tokens: {max_tokens} is not even room for the special tokens around two texts. Raise it."
        )
    return found


def tokenizer_texts(sources: Sequence[Source]) -> dict[str, list[str]]:
    """Give sources as a tokenizer's arguments.

    >>> tokenizer_texts([("a", "b"), ("c", "d")])
    {'text': ['a', 'c'], 'text_pair': ['b', 'd']}
    """
    sides = zip(*map(texts_of, sources), strict=True)
    return {name: list(texts) for name, texts in zip(("text", "text_pair"), sides, strict=False)}


def _tokenized(
    tokenizer: Any, texts: Sequence[Source], max_tokens: int, arguments: Callable[[Sequence[Any]], dict[str, list[str]]]
) -> SourceTokens:
    if not texts:
        return SourceTokens([], None, 0)

    def encoded(some: Sequence[Source], **options: Any) -> Any:
        given = arguments(some)
        return tokenizer(**given, add_special_tokens=True, return_attention_mask=False, verbose=False, **options)

    found = encoded(texts, truncation=False)
    rows, types = found["input_ids"], found.get("token_type_ids")
    long = [index for index, row in enumerate(rows) if len(row) > max_tokens]
    if long:  # a second pass over these few: only the tokenizer knows which special tokens to keep
        cut = encoded([texts[index] for index in long], truncation=True, max_length=max_tokens)  # longest first
        for place, index in enumerate(long):
            rows[index] = cut["input_ids"][place]
            if types is not None:
                types[index] = cut["token_type_ids"][place]
    empty = next((index for index, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise DataError(
            f"row {empty + 1}: the tokenizer makes no token of {str(texts[empty])[:60]!r}. Remove the row, or use a "
            "tokenizer that ends texts with an end token."
        )
    return SourceTokens(rows, types, len(long))


class EncodedPairs(Dataset[dict[str, list[int]]]):
    """Token ids of training rows: items are `{"input_ids": [...], "labels": [...]}`, not padded.

    Items of rows whose token types are known have `token_type_ids` too.

    Args:
        input_ids: one list of source ids a row.
        labels: one list of target ids a row.
        token_type_ids: of which text each source id is; see `SourceTokens`.
        num_cut_sources: how many sources were longer than allowed.
        num_cut_targets: how many targets were longer than allowed.
    """

    def __init__(
        self,
        input_ids: Sequence[list[int]],
        labels: Sequence[list[int]],
        *,
        token_type_ids: Sequence[list[int]] | None = None,
        num_cut_sources: int = 0,
        num_cut_targets: int = 0,
    ) -> None:
        self.input_ids = input_ids
        self.labels = labels
        self.token_type_ids = token_type_ids
        self.num_cut_sources = num_cut_sources
        self.num_cut_targets = num_cut_targets

    @property
    def length_keys(self) -> list[int]:
        """What the sampler orders the rows by: the lengths of both sides."""
        return length_keys([len(row) for row in self.input_ids], [len(row) for row in self.labels])

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = {"input_ids": self.input_ids[index], "labels": self.labels[index]}
        if self.token_type_ids is not None:
            row["token_type_ids"] = self.token_type_ids[index]
        return row


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
    sources, num_cut_sources = tokenize(tokenizer, single_texts([source for source, _ in rows]), max_source_tokens)
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


def source_inputs(
    rows: Sequence[Sequence[int]], padding: int, token_types: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """Make what a model reads of sources: the one place for training, evaluation and proofs.

    Args:
        rows: token ids, at least one row.
        padding: the id that fills the free places.
        token_types: of which text each token is; None where that is not known.

    Returns:
        input_ids and attention_mask, int64 (rows, longest); token_type_ids too, where they are known.

    >>> list(source_inputs([[1, 2]], 0)), source_inputs([[1, 2], [3]], 0, [[0, 1], [0]])["token_type_ids"].tolist()
    (['input_ids', 'attention_mask'], [[0, 1], [0, 0]])
    """
    inputs = {"input_ids": pad(rows, padding), "attention_mask": attention_mask(rows)}
    return inputs if token_types is None else inputs | {"token_type_ids": pad(token_types, 0)}


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
        """Return input_ids, attention_mask (B, S), labels (B, T); token_type_ids (B, S) of rows with them; int64."""
        types = [row["token_type_ids"] for row in rows] if "token_type_ids" in rows[0] else None
        inputs = source_inputs([row["input_ids"] for row in rows], self.pad_token_id, types)
        return inputs | {"labels": pad([row["labels"] for row in rows], IGNORED)}
