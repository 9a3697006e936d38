"""The order is a function of (seed, epoch), complete, by length, and leaves the global random state alone."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.tasks.sampler import LengthSampler, length_batches, length_keys


@given(
    lengths=st.lists(st.integers(0, 30), max_size=200),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    by_length=st.booleans(),
    window=st.integers(1, 5),
)
def test_each_index_comes_exactly_once(
    lengths: list[int], batch_size: int, seed: int, by_length: bool, window: int
) -> None:
    sampler = LengthSampler(lengths, batch_size, seed=seed, window=window, by_length=by_length)
    assert sorted(sampler) == list(range(len(lengths)))
    assert len(sampler) == len(lengths)


@given(num_rows=st.integers(0, 100), batch_size=st.integers(1, 9), epoch=st.integers(0, 5))
def test_only_the_last_batch_is_short(num_rows: int, batch_size: int, epoch: int) -> None:
    batches = length_batches([1] * num_rows, batch_size, seed=0, epoch=epoch, window=2)
    assert all(len(batch) == batch_size for batch in batches[:-1])


LENGTHS = torch.randint(1, 500, (1003,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("by_length", [False, True])
def test_seed_and_epoch_decide_the_order(by_length: bool) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthSampler(LENGTHS, 8, seed=seed, by_length=by_length)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    orders = {tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9  # (1, 2) is not (2, 1) either


def test_the_order_does_not_depend_on_how_often_it_was_read() -> None:
    sampler = LengthSampler(LENGTHS, 8, seed=1)
    sampler.set_epoch(3)
    first = list(sampler)
    fresh = pickle.loads(pickle.dumps(sampler))
    assert list(sampler) == first == list(fresh)


def test_the_order_is_pinned() -> None:
    # A resumed run of an older version must read the same rows: change the rule only with a note in the changelog.
    assert list(LengthSampler([5, 1, 4, 2, 3, 6, 7], 2, seed=42)) == [4, 2, 1, 3, 0, 5, 6]


def test_batches_are_alike_in_length_but_not_in_order_of_length() -> None:
    batches = length_batches(LENGTHS, 8, seed=0, epoch=0)
    spreads = [max(LENGTHS[row] for row in batch) - min(LENGTHS[row] for row in batch) for batch in batches]
    assert sum(spreads) / len(spreads) < 25  # of 500; a plain shuffle has about 390
    firsts = [LENGTHS[batch[0]] for batch in batches]
    assert firsts != sorted(firsts)


def test_keys_keep_both_sides_of_a_batch_alike() -> None:
    sources = [8 + length % 5 for length in LENGTHS]
    targets = [length % 30 for length in reversed(LENGTHS)]

    def padded(keys: list[int]) -> int:
        batches = length_batches(keys, 8, seed=0, epoch=0)
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in batches for lengths in (sources, targets))

    tokens = sum(sources) + sum(targets)
    by_source, by_both = padded(sources), padded(length_keys(sources, targets))
    assert by_both - tokens < 0.25 * (by_source - tokens)


def test_keys_are_one_a_row_and_never_mix_sources_of_other_lengths() -> None:
    keys = length_keys([3, 12, 3, 12], [9, 1, 1, 9])
    assert len(set(keys)) == 4
    assert max(keys[0], keys[2]) < min(keys[1], keys[3])
    assert length_keys([], []) == []


def test_global_random_state_is_neither_read_nor_written() -> None:
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state()
        orders.append(list(LengthSampler(LENGTHS, 8, seed=7)))
        assert torch.equal(before, torch.get_rng_state())
    assert orders[0] == orders[1]


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LengthSampler([1], 0, seed=0)
