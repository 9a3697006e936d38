"""Counts are those of the training's own ids; a vocabulary maps the kept ids to 0..n-1 and refuses all others."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import DataError
from secateur.tasks.cmudict import build_tokenizer
from secateur.tasks.encode import encode
from secateur.tasks.pairs import Pairs
from secateur.tasks.vocabulary import Vocabulary, count_ids, needed_vocabulary

TOKENIZER = build_tokenizer(max_length=4)  # shorter than the texts: no warning may come of it, and nothing is cut
PAIRS = Pairs(("cat", "tomatoes", "a"), (("K AE T",), ("T AH M", "T AH M AA T OW Z"), ("AH",)))


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_counts_are_those_of_the_training_rows(batch_size: int) -> None:
    rows = encode(PAIRS, TOKENIZER, max_source_tokens=100, max_target_tokens=100)
    wanted = np.bincount([index for row in [*rows.input_ids, *rows.labels] for index in row], minlength=80)
    pairs = PAIRS.rows()
    found = count_ids(TOKENIZER, (s for s, _ in pairs), (t for _, t in pairs), 80, batch_size=batch_size)
    assert found.dtype == np.int64 and found.shape == (80,)
    assert found.tolist() == wanted.tolist()
    assert found[1] == 2 * len(pairs)  # the end token
    assert not found[len(TOKENIZER) :].any()  # rows of the model without a token


def test_targets_are_tokenized_as_targets() -> None:
    class Sided:
        def __call__(self, *, text: Any = None, text_target: Any = None, **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[3]] * len(text) if text is not None else [[], *[[5, 5]] * (len(text_target) - 1)]}

    assert count_ids(Sided(), ["a", "b"], ["c", "d"], 6).tolist() == [0, 0, 0, 2, 0, 2]
    assert not count_ids(Sided(), [], [], 6).any()


def test_a_foreign_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match=r"gives the id \d+, the model embeds 40 tokens"):
        count_ids(TOKENIZER, ["zoo"], ["Z UW"], 40)


def test_what_is_used_and_what_must_stay_is_kept() -> None:
    vocabulary = needed_vocabulary(np.array([0, 3, 0, 0, 1]), floor=frozenset({0, 1}))
    assert vocabulary == Vocabulary((0, 1, 4), vocab_size=5)
    with pytest.raises(DataError, match="vocabulary of 5 ids: the id 7 is not in 0 to 4"):
        needed_vocabulary(np.array([0, 3, 0, 0, 1]), floor={7})


@given(st.sets(st.integers(0, 40), min_size=1), st.integers(0, 5))
def test_kept_ids_are_renumbered_and_come_back(kept: set[int], more: int) -> None:
    vocabulary = Vocabulary(tuple(sorted(kept)), vocab_size=max(kept) + 1 + more)
    table = vocabulary.old_to_new
    assert table.shape == (vocabulary.vocab_size,) and table.dtype == np.int64
    assert table[list(vocabulary.kept)].tolist() == list(range(len(vocabulary))) == list(range(len(kept)))
    assert (table < 0).sum() == vocabulary.vocab_size - len(kept)
    assert vocabulary.remap(np.array([vocabulary.kept] * 2)).tolist() == [list(range(len(kept)))] * 2
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.as_json()))) == vocabulary
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


def test_an_id_that_is_gone_is_refused() -> None:
    vocabulary = Vocabulary((0, 1, 5), vocab_size=8)
    assert vocabulary.remap([]).tolist() == []
    with pytest.raises(DataError, match="the ids -1, 2, 8 are not in the trimmed vocabulary of 3 ids"):
        vocabulary.remap([[0, 8, 2], [2, -100, -1]])


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ((), "no id stays"),
        ((0, 1, 1), "the id 1 is not above the id before"),
        ((3, 1, 2), "the id 1 is not above the id before"),
        ((-1, 2, 9), "the ids -1, 9 are not in 0 to 7"),
        (tuple(range(8, 15)), "the ids 8, 9, 10, 11, 12 and 2 more are not in 0 to 7"),
    ],
)
def test_ids_out_of_order_or_range_are_refused(kept: tuple[int, ...], told: str) -> None:
    with pytest.raises(DataError, match=f"vocabulary of 8 ids: {told}"):
        Vocabulary(kept, vocab_size=8)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [0, 1],
        {"kept": [0]},
        {"kept": [0], "vocab_size": "8"},
        {"kept": [0], "vocab_size": 8, "tokens": []},
        {"kept": [0, True], "vocab_size": 8},
        {"kept": [0.0], "vocab_size": 8},
        {"kept": "01", "vocab_size": 8},
    ],
)
def test_something_else_is_no_vocabulary(data: Any) -> None:
    with pytest.raises(DataError, match="not a vocabulary"):
        Vocabulary.from_json(data)
