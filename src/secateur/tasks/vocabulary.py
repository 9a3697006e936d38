"""Which rows of a vocabulary a task needs: how often its texts use each id, and the ids that stay, renumbered."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secateur.errors import DataError
from secateur.tasks.encode import check_ids, tokenizer_texts
from secateur.tasks.pairs import Source
from secateur.tasks.sampler import IGNORED

_BATCH = 1024  # texts; a batch's encodings are freed before the next
_MAX_NAMED = 5  # ids that one message names


@dataclass(frozen=True)
class Vocabulary:
    """The ids that stay, and what they become: the n-th of them is the new id n.

    Args:
        kept: old ids, ascending, at least one.
        vocab_size: rows of the table that the old ids count in.

    Raises:
        DataError: an id stands twice, out of order or out of range.

    >>> Vocabulary((0, 1, 5), vocab_size=8).old_to_new.tolist()
    [0, 1, -1, -1, -1, 2, -1, -1]
    """

    kept: tuple[int, ...]
    vocab_size: int

    def __post_init__(self) -> None:
        kept = self.kept
        faults = []
        if not kept:
            faults.append("no id stays")
        outside = [index for index in kept if not 0 <= index < self.vocab_size]
        if outside:
            faults.append(f"{_some(outside)} not in 0 to {self.vocab_size - 1}: the ids belong to another vocabulary")
        unordered = [after for before, after in itertools.pairwise(kept) if after <= before]
        if unordered:
            faults.append(f"{_some(unordered)} not above the id before: write each id once, ascending")
        if faults:
            raise DataError(f"vocabulary of {self.vocab_size} ids: {'; '.join(faults)}.")

    def __len__(self) -> int:
        return len(self.kept)

    @functools.cached_property
    def old_to_new(self) -> NDArray[np.int64]:
        """New id of every old one; int64 (vocab_size,), read-only, -1 where the id is gone."""
        table = np.full(self.vocab_size, -1, dtype=np.int64)
        table[np.asarray(self.kept)] = np.arange(len(self.kept))
        table.setflags(write=False)
        return table

    def remap(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Turn old ids into new ones.

        Args:
            ids: old ids, any shape; -100, the label that a loss leaves out, stays as it is.

        Returns:
            New ids, int64, the shape of `ids`.

        Raises:
            DataError: an id is gone, or never was.

        >>> Vocabulary((0, 1, 5), vocab_size=8).remap([[5, 1], [0, -100]]).tolist()
        [[2, 1], [0, -100]]
        """
        old = np.asarray(ids, dtype=np.int64)
        ignored = old == IGNORED
        inside = (old >= 0) & (old < self.vocab_size)
        new = self.old_to_new[np.where(inside, old, 0)]
        lost = np.unique(old[~ignored & (~inside | (new < 0))]).tolist()
        if lost:
            raise DataError(
                f"{_some(lost)} not in the trimmed vocabulary of {len(self)} ids. Tokenize the text with the trimmed "
                "tokenizer, or count the texts it comes from before trimming."
            )
        return np.where(ignored, IGNORED, new)

    def as_json(self) -> dict[str, Any]:
        """Give what `from_json` reads: ids alone, no text.

        >>> Vocabulary((0, 1, 5), vocab_size=8).as_json()
        {'vocab_size': 8, 'kept': [0, 1, 5]}
        """
        return {"vocab_size": int(self.vocab_size), "kept": list(map(int, self.kept))}  # numpy's integers are no JSON

    @classmethod
    def from_json(cls, data: Any) -> Vocabulary:
        """Read what `as_json` gave.

        Args:
            data: the parsed JSON.

        Returns:
            An equal vocabulary.

        Raises:
            DataError: it is something else, or its ids are not in order.
        """
        fields = data if isinstance(data, Mapping) else {}
        size, kept = fields.get("vocab_size"), fields.get("kept")
        if set(fields) != {"vocab_size", "kept"} or type(size) is not int or not isinstance(kept, list):
            raise DataError(
                'not a vocabulary: it must be an object such as {"vocab_size": 8192, "kept": [0, 1, 5]}. Cut the '
                "model again."
            )
        if not all(type(index) is int for index in kept):
            raise DataError("not a vocabulary: its ids must be whole numbers. Cut the model again.")
        return cls(tuple(kept), size)


def _some(ids: Collection[int]) -> str:
    """Name the first ids of several: "the ids 3, 4, 5, 6, 7 and 2 more are"."""
    named = ", ".join(map(str, list(ids)[:_MAX_NAMED]))
    more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
    return f"the id {named} is" if len(ids) == 1 else f"the ids {named}{more} are"


def count_ids(
    tokenizer: Any, sources: Iterable[Source], targets: Iterable[str], vocab_size: int, *, batch_size: int = _BATCH
) -> NDArray[np.int64]:
    """Count how often a task's texts use each id, tokenized as for training but whole: no limit of length acts.

    Args:
        tokenizer: a Hugging Face tokenizer.
        sources: what the model reads, prefix applied.
        targets: texts that it is to write.
        vocab_size: rows of the model's embedding table; there may be more of them than tokens.
        batch_size: texts that are tokenized at once, at least 1.

    Returns:
        int64 (vocab_size,), the end tokens counted.

    Raises:
        DataError: the tokenizer gives ids that the model has no row for: it is another model's.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    sides: list[tuple[Callable[[Any], dict[str, list[str]]], Iterable[Any]]]
    sides = [(tokenizer_texts, sources), (lambda batch: {"text_target": batch}, targets)]
    for arguments, texts in sides:
        rest = iter(texts)
        while batch := list(itertools.islice(rest, batch_size)):
            # The call that `secateur.tasks.encode.tokenize` makes: a target side of its own is a tokenizer's right.
            given: dict[str, Any] = arguments(batch)
            rows = tokenizer(
                **given, add_special_tokens=True, return_attention_mask=False, verbose=False, truncation=False
            )["input_ids"]
            check_ids(rows, vocab_size)
            counts += np.bincount(np.fromiter(itertools.chain.from_iterable(rows), np.int64), minlength=vocab_size)
    return counts


def needed_vocabulary(counts: NDArray[np.int64], floor: Iterable[int]) -> Vocabulary:
    """Keep the ids that the texts use, and those that stay in any case.

    Args:
        counts: int64 (vocab_size,), of `count_ids`.
        floor: ids that stay whatever their count: see `secateur.tasks.trim.floor_ids`.

    Returns:
        The vocabulary.

    Raises:
        DataError: an id of the floor is out of range.

    >>> needed_vocabulary(np.array([0, 0, 7, 0]), {0}).kept
    (0, 2)
    """
    used = np.flatnonzero(counts).tolist()
    return Vocabulary(tuple(sorted({*used, *floor})), vocab_size=len(counts))
