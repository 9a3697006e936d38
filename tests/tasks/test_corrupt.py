"""Corruption loses no token, cuts out what it says, and follows from (seed, epoch, row) alone."""

from __future__ import annotations

import itertools
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import DataError
from secateur.tasks.cmudict import build_tokenizer
from secateur.tasks.corrupt import (
    MEAN_SPAN,
    RATE,
    DenoisedPairs,
    corrupt_spans,
    count_spans,
    denoise,
    longest_text,
    sentinels_of,
)
from secateur.tasks.encode import EncodedPairs, encode
from secateur.tasks.pairs import Pairs
from secateur.tasks.sampler import LengthSampler

END = 1
SENTINELS = list(range(10**6 + 99, 10**6 - 1, -1))  # 100, as T5's: the first is the largest id
IDS = st.lists(st.integers(2, 999), min_size=2, max_size=300)
RATES = st.floats(0.01, 0.99)
MEANS = st.floats(1.0, 20.0)


def restore(source: list[int], target: list[int]) -> list[int]:
    """Put the spans of a target back where their sentinels stand."""
    spans: dict[int, list[int]] = {}
    sentinel = -1
    for token in target[:-1]:
        if token in SENTINELS:
            sentinel = token
        spans.setdefault(sentinel, []).append(token)
    return [item for token in source[:-1] for item in (spans[token][1:] if token in spans else [token])]


@given(ids=IDS, seed=st.integers(0, 2**64 - 1), rate=RATES, mean_span=MEANS, num_sentinels=st.integers(1, 100))
def test_the_spans_put_back_give_the_text(
    ids: list[int], seed: int, rate: float, mean_span: float, num_sentinels: int
) -> None:
    source, target = corrupt_spans(
        ids,
        random.Random(seed),
        sentinels=SENTINELS[:num_sentinels],
        end_id=END,
        rate=rate,
        mean_span=mean_span,
    )
    num_noise, num_spans = count_spans(len(ids), num_sentinels, rate=rate, mean_span=mean_span)
    assert restore(source, target) == ids
    assert source[-1] == target[-1] == END and END not in source[:-1] + target[:-1]
    assert len(source) == len(ids) - num_noise + num_spans + 1
    assert len(target) == num_noise + num_spans + 1
    used = [token for token in source if token in SENTINELS]
    assert used == [token for token in target if token in SENTINELS] == SENTINELS[:num_spans]
    for side in (source, target):  # no two spans are neighbours, and none is empty
        assert not any(a in SENTINELS and b in SENTINELS for a, b in itertools.pairwise(side))
    assert target[-2] not in SENTINELS


@given(num_tokens=st.integers(2, 3000), rate=RATES, mean_span=MEANS)
def test_counts_are_the_rate_and_the_mean(num_tokens: int, rate: float, mean_span: float) -> None:
    num_noise, num_spans = count_spans(num_tokens, 10**6, rate=rate, mean_span=mean_span)
    assert 1 <= num_noise < num_tokens
    assert 1 <= num_spans <= min(num_noise, num_tokens - num_noise + 1)
    assert abs(num_noise - rate * num_tokens) <= 1
    if num_spans < num_tokens - num_noise + 1 and num_noise > mean_span:
        assert abs(num_spans - num_noise / mean_span) <= 0.5


def test_t5s_own_numbers() -> None:
    # The paper's 512 tokens: 15 % in spans of 3, which gives its targets of 114 tokens from texts of 568.
    assert (RATE, MEAN_SPAN) == (0.15, 3.0)
    assert longest_text(512, 114, 100) == 568
    source, target = corrupt_spans(list(range(568)), random.Random(0), sentinels=SENTINELS, end_id=END)
    assert (len(source), len(target)) == (512, 114)


def test_every_place_of_a_span_is_equally_likely() -> None:
    ids = list(range(2, 9))  # 7 tokens: one span of one token
    counts = [0] * 7
    for seed in range(7000):
        counts[corrupt_spans(ids, random.Random(seed), sentinels=SENTINELS, end_id=END)[1][1] - 2] += 1
    assert all(850 < count < 1150 for count in counts)  # 1000 +- 5 standard deviations of 29


def test_the_spans_are_pinned() -> None:
    # A resumed run of an older version must read the same rows: change the rule only with a note in the changelog.
    rows = denoised(num_rows=3, share=1.0)
    assert rows[2] == {
        "input_ids": [*range(202, 212), SENTINELS[0], 214, END],
        "labels": [SENTINELS[0], 212, 213, END],
    }


@pytest.mark.parametrize(
    ("num_tokens", "options"), [(1, {}), (5, {"rate": 0.0}), (5, {"rate": 1.0}), (5, {"mean_span": 0.5})]
)
def test_numbers_out_of_range_are_refused(num_tokens: int, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="span corruption needs"):
        count_spans(num_tokens, 100, **options)


@given(max_source=st.integers(3, 300), max_target=st.integers(3, 80), num_sentinels=st.integers(1, 100))
def test_the_longest_text_fits_and_one_more_does_not(max_source: int, max_target: int, num_sentinels: int) -> None:
    longest = longest_text(max_source, max_target, num_sentinels)

    def fits(num_tokens: int) -> bool:
        num_noise, num_spans = count_spans(num_tokens, num_sentinels)
        source = num_tokens - num_noise + num_spans + 1
        return source <= max_source and num_noise + num_spans + 1 <= max_target

    assert fits(longest) and not fits(longest + 1)


@pytest.mark.parametrize(("max_source", "max_target"), [(1, 9), (2, 9), (9, 2)])
def test_limits_without_room_are_refused(max_source: int, max_target: int) -> None:
    with pytest.raises(DataError, match=r"leave no room for a sentinel.*Make both 3"):
        longest_text(max_source, max_target, 100)


# The sentinels of a tokenizer


class Vocabulary:
    """What is asked of a tokenizer."""

    eos_token_id: int | None = END

    def __init__(self, *tokens: str) -> None:
        self.tokens = {token: index for index, token in enumerate(tokens)}

    def get_vocab(self) -> dict[str, int]:
        return self.tokens


def test_sentinels_come_by_number() -> None:
    assert sentinels_of(Vocabulary("a", "<extra_id_10>", "<extra_id_2>", "<extra_id_0>", "<extra_id_x>")) == [3, 2, 1]
    assert sentinels_of(Vocabulary("</s>", "\u2581<extra_id_1>", "\u2581<extra_id_0>")) == [2, 1]  # mT5


def test_a_tokenizer_without_sentinels_is_refused() -> None:
    with pytest.raises(DataError, match=r"has no sentinel tokens \(<extra_id_0>.*Remove denoising"):
        sentinels_of(build_tokenizer())


# Rows of a training

MAX_SOURCE, MAX_TARGET = 60, 9


def pairs(num_rows: int = 200) -> EncodedPairs:
    """Rows of 3 to 50 different tokens, the last of them the target."""
    texts = [[100 * row + token for token in range(2, 5 + 5 * row % 48)] for row in range(num_rows)]
    return EncodedPairs([[*text[:-1], END] for text in texts], [[text[-1], END] for text in texts])


def denoised(
    num_rows: int = 200, *, share: float = 0.5, until: float = 0.3, epochs: float = 4.0, seed: int = 7
) -> DenoisedPairs:
    rows = pairs(num_rows)
    return DenoisedPairs(
        rows,
        LengthSampler(rows.length_keys, 8, seed=seed),
        sentinels=SENTINELS,
        end_id=END,
        max_source_tokens=MAX_SOURCE,
        max_target_tokens=MAX_TARGET,
        share=share,
        until=until,
        epochs=epochs,
        seed=seed,
    )


def replaced(rows: DenoisedPairs) -> list[int]:
    """Rows that are not as they were, in the order in which they are read."""
    return [row for row in rows.sampler if rows[row] != rows.rows[row]]


def test_the_first_part_is_mixed_and_the_rest_is_as_it_was() -> None:
    rows = denoised()  # 4 epochs, of which 1.2 are the first part
    shares = []
    for epoch in range(4):
        rows.set_epoch(epoch)
        found = replaced(rows)
        shares.append(len(found) / len(rows))
        if epoch == 1:
            assert set(found) <= set(list(rows.sampler)[:40])  # 0.2 of 200 rows, the first that are read
    assert shares[0] == pytest.approx(0.5, abs=0.12)
    assert 0.02 < shares[1] < 0.2
    assert shares[2:] == [0.0, 0.0]


def test_a_part_of_one_epoch_is_its_beginning() -> None:
    rows = denoised(share=1.0, until=0.3, epochs=1)
    assert replaced(rows) == list(rows.sampler)[:60]
    assert replaced(denoised(share=1.0, until=1.0, epochs=0.5)) == replaced(denoised(share=1.0, until=0.5, epochs=1))


def test_rows_follow_from_seed_epoch_and_index_alone() -> None:
    rows, again = denoised(until=1.0), denoised(until=1.0)
    again.set_epoch(3)
    for epoch in range(3):
        rows.set_epoch(epoch)
        _ = [rows[index] for index in range(0, 200, 3)]
    rows.set_epoch(3)
    expected = [rows[index] for index in range(200)]
    assert [again[index] for index in reversed(range(200))] == expected[::-1]
    assert [pickle.loads(pickle.dumps(rows))[index] for index in range(200)] == expected
    others = [denoised(until=1.0, seed=8), denoised(until=1.0)]  # another seed; epoch 0
    others[0].set_epoch(3)
    assert all([other[index] for index in range(200)] != expected for other in others)


def test_rows_fit_end_and_hold_tokens_of_their_own_text_only() -> None:
    rows = denoised(share=1.0, until=1.0)
    assert rows.longest < 48  # so that some texts are too long, and a part of them is taken
    starts = set()
    for index in range(len(rows)):
        whole = [*rows.rows.input_ids[index][:-1], rows.rows.labels[index][0]]
        row = rows[index]
        assert len(row["input_ids"]) <= MAX_SOURCE and len(row["labels"]) <= MAX_TARGET
        text = restore(row["input_ids"], row["labels"])
        assert len(text) == min(len(whole), rows.longest)
        start = whole.index(text[0])
        assert whole[start : start + len(text)] == text
        starts.add(start)
    assert len(starts) > 5


def test_a_text_of_one_token_is_left_as_it_is() -> None:
    rows = EncodedPairs([[END], [5, END]], [[7, END], [END]])
    one = DenoisedPairs(
        rows,
        LengthSampler(rows.length_keys, 1, seed=0),
        sentinels=SENTINELS,
        end_id=END,
        max_source_tokens=9,
        max_target_tokens=9,
        share=1.0,
        until=1.0,
        epochs=1,
        seed=0,
    )
    assert [one[0], one[1]] == [rows[0], rows[1]]
    assert len(one) == 2


def test_a_tokenizers_rows_are_denoised_with_its_own_sentinels() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<extra_id_{number}>" for number in range(5)]})
    rows = encode(Pairs(("abandon",), (("AH B AE N D AH N",),)), tokenizer, max_source_tokens=20, max_target_tokens=20)
    sampler = LengthSampler(rows.length_keys, 1, seed=0)
    limits = {"max_source_tokens": 20, "max_target_tokens": 20, "share": 1.0, "until": 1.0, "epochs": 1.0, "seed": 0}
    row = denoise(rows, tokenizer, sampler=sampler, **limits, vocab_size=76)[0]
    assert row["input_ids"][-1] == row["labels"][-1] == tokenizer.eos_token_id
    assert row["labels"][0] == tokenizer.convert_tokens_to_ids("<extra_id_0>") == 71
    with pytest.raises(DataError, match="gives the id 75, the model embeds 71"):
        denoise(rows, tokenizer, sampler=sampler, **limits, vocab_size=71)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="has no end token"):
        denoise(rows, tokenizer, sampler=sampler, **limits)
