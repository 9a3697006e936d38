"""The order of training rows: a function of (seed, epoch) alone, so that a resumed run reads as an unbroken one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from secateur.processes import Processes

IGNORED = -100  # the label that torch's cross entropy leaves out


def _generator(seed: int, epoch: int) -> torch.Generator:
    """Seed a generator of our own: neighbouring seeds and epochs must not give related streams."""
    digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def shuffled(num_rows: int, *, seed: int, epoch: int) -> list[int]:
    """Shuffle row indices.

    Args:
        num_rows: how many rows there are.
        seed: of the run.
        epoch: 0 for the first.

    Returns:
        Every index once; the same for the same (seed, epoch).

    >>> sorted(shuffled(4, seed=1, epoch=0))
    [0, 1, 2, 3]
    """
    return torch.randperm(num_rows, generator=_generator(seed, epoch)).tolist()


def length_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, window: int = 50
) -> list[list[int]]:
    """Batch rows of similar length, without putting the whole set in order of length.

    Rows are shuffled and cut into windows of `window` batches; each window is sorted by length and cut into batches;
    then the batches are shuffled. A last batch that is short stays last.

    Args:
        lengths: tokens per row.
        batch_size: rows per batch.
        seed: of the run.
        epoch: 0 for the first.
        window: batches per window; more gives less padding and less chance.

    Returns:
        Batches of row indices; every index once.

    >>> length_batches([9, 1, 8, 2, 5], 2, seed=0, epoch=0)[-1]
    [0]
    """
    generator = _generator(seed, epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(order), window * batch_size):
        rows = sorted(order[start : start + window * batch_size], key=lengths.__getitem__)
        batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    num_full = len(lengths) // batch_size
    places = torch.randperm(num_full, generator=generator).tolist()
    return [batches[place] for place in places] + batches[num_full:]


def length_keys(sources: Sequence[int], targets: Sequence[int]) -> list[int]:
    """Number rows such that neighbours in that order are alike in the lengths of both their sides.

    Rows of like source length (within 4.4 %) stand together, by target length: rising in one such group, falling in the
    next, so that no batch on a border holds both the longest and the shortest targets.

    Args:
        sources: tokens per source.
        targets: tokens per target, as many.

    Returns:
        One key a row, for `LengthSampler` in the place of its lengths.

    >>> keys = length_keys([4, 4, 9, 9], [1, 7, 7, 1])
    >>> sorted(range(4), key=keys.__getitem__)
    [0, 1, 2, 3]
    """
    groups = [round(16 * math.log2(max(1, length))) for length in sources]
    place = {group: number for number, group in enumerate(sorted(set(groups)))}
    span = max(targets, default=0) + 1
    return [
        place[group] * span + (target if place[group] % 2 == 0 else span - 1 - target)
        for group, target in zip(groups, targets, strict=True)
    ]


class LengthSampler(Sampler[int]):
    """Gives row indices such that every `batch_size` consecutive ones have similar lengths.

    The global random state is neither read nor written: the Trainer's own grouping draws on it, and a resumed run would
    then read other rows.

    Args:
        lengths: tokens per row, or `length_keys`.
        batch_size: rows per batch of the loader that this sampler feeds.
        seed: of the run.
        window: batches that are sorted together; see `length_batches`.
        by_length: False shuffles only.

    >>> sampler = LengthSampler([3, 1, 2], 2, seed=0)
    >>> sorted(sampler), len(sampler)
    ([0, 1, 2], 3)
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int, window: int = 50, by_length: bool = True
    ) -> None:
        if batch_size < 1 or window < 1:
            raise ValueError(f"batch_size and window must be at least 1, not {batch_size} and {window}")
        super().__init__()
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.window = window
        self.by_length = by_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, 0 for the first; it holds until the next call."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        if not self.by_length:
            return iter(shuffled(len(self.lengths), seed=self.seed, epoch=self.epoch))
        batches = length_batches(self.lengths, self.batch_size, seed=self.seed, epoch=self.epoch, window=self.window)
        return (row for batch in batches for row in batch)


class OwnBatches(Sampler[list[int | None]]):
    """One process's share of every batch, so that all processes together see the batches that one alone would see.

    Args:
        sampler: the order of rows, the same in every process.
        batch_size: rows of a whole batch, over all processes, at least 1.
        processes: which process this is, of how many.

    >>> [list(OwnBatches(LengthSampler([1], 2, seed=0), 2, Processes(rank, 2))) for rank in (0, 1)]
    [[[0]], [[None]]]
    """

    def __init__(self, sampler: Sampler[int], batch_size: int, processes: Processes) -> None:
        super().__init__()
        self.sampler = sampler
        self.batch_size = batch_size
        self.processes = processes

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)  # type: ignore[arg-type]  # ours have a length

    def __iter__(self) -> Iterator[list[int | None]]:
        rows = list(self.sampler)
        for start in range(0, len(rows), self.batch_size):
            # A process without a row takes part all the same: the others wait for its gradients.
            yield list(self.processes.own(rows[start : start + self.batch_size])) or [None]


class OwnRows(Dataset[dict[str, list[int]]]):
    """A data set whose row `None` is a row with nothing to learn, for `OwnBatches`.

    Args:
        rows: items with input_ids, labels, and whatever else each of them has.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | None) -> dict[str, list[int]]:
        if index is None:
            return self.rows[0] | {"labels": [IGNORED]}
        return self.rows[index]
