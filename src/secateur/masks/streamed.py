"""Magnitude pruning of tensors that are read block by block: the same masks as `allocate`, with none of them in memory.

Magnitudes are ordered as their floats' bits are, so what goes is found by counting: one pass counts the upper 16 bits,
a second one the lower 16 bits of what shares the threshold's upper ones (bf16 and fp16 need the first alone). Within a
tensor, whatever group it stood in, what goes is always the lowest by magnitude and then by flat index. So a mask is
three numbers, and an earlier pruning is known by how many it removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import numpy as np

from secateur.errors import MaskError
from secateur.masks.allocate import Share, cap_of, check_numbers, not_finite, spend
from secateur.masks.select import keep_later_equals

BLOCK = 1 << 20  # elements read at a time
DTYPES = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}  # bits of the floats we can order
_UPPER = 1 << 15  # upper halves of a magnitude's bits: the sign is gone
_LOWER = 1 << 16
_INFINITE = {"F32": 0x7F80, "BF16": 0x7F80, "F16": 0x7C00}  # the upper halves from which on there is no number


@dataclass(frozen=True)
class Stream:
    """One tensor that is read block by block.

    Attributes:
        path: its name.
        numel: its elements.
        dtype: F32, F16 or BF16.
        blocks: begins a pass over its bits: uint32 or uint16 arrays, in flat order.
    """

    path: str
    numel: int
    dtype: str
    blocks: Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Removal:
    """A mask in three numbers: everything of a smaller magnitude than `value` goes, and the first of its equals.

    Attributes:
        value: a magnitude that fp32 holds exactly.
        num_equal: how many elements of just this magnitude go, the lower flat index first.
        num_removed: how many go in all.
    """

    value: float = 0.0
    num_equal: int = 0
    num_removed: int = 0


def magnitudes(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Turn floats' bits into their magnitudes.

    Args:
        bits: uint32 or uint16 (n,).
        dtype: F32, F16 or BF16.

    Returns:
        float32 (n,), >= 0.

    >>> magnitudes(np.array([-1.5, 2.0], np.float16).view(np.uint16), "F16").tolist()
    [1.5, 2.0]
    """
    if dtype == "F16":
        return np.abs(bits.view(np.float16)).astype(np.float32)
    wide = bits if dtype == "F32" else bits.astype(np.uint32) << 16
    return (wide & np.uint32(0x7FFFFFFF)).view(np.float32)


def keep_block(block: np.ndarray, removal: Removal, equals_left: int) -> tuple[np.ndarray, int]:
    """Write a piece of a removal's mask.

    Args:
        block: magnitudes of the tensor's next elements in flat order, float32 (n,).
        removal: of this tensor.
        equals_left: how many equals have still to go; `removal.num_equal` before the first piece.

    Returns:
        bool (n,), True = keep; and how many equals have to go after it.

    >>> keep, left = keep_block(np.array([3.0, 1.0, 2.0], np.float32), Removal(1.0, num_equal=1, num_removed=1), 1)
    >>> keep.tolist(), left
    ([True, False, True], 0)
    """
    kept = block > removal.value
    return kept, equals_left - keep_later_equals(kept, block == removal.value, None, equals_left)


def allocate_streams(
    streams: Sequence[Stream],
    sparsity: float,
    *,
    scope: Literal["tensor", "global"] = "global",
    already: Mapping[str, Removal] | None = None,
    max_sparsity: float | None = None,
    min_keep: int = 0,
) -> dict[str, Removal]:
    """Remove the elements of the smallest magnitude until the budget is spent: what `allocate` does with `magnitude`.

    Args:
        streams: the tensors, in the order that decides among equals.
        sparsity: share of the scope removed, 0 <= sparsity < 1.
        scope: "global" (one threshold for all tensors) or "tensor" (each tensor its own).
        already: name -> what earlier prunings removed; it stays removed and counts.
        max_sparsity: the most that any one tensor may lose, 0 <= max_sparsity < 1 (rounded down to elements).
        min_keep: elements that every tensor keeps.

    Returns:
        The tensors' names in their order -> what goes in all.

    Raises:
        MaskError: a number is out of range, a weight is not finite, or the caps leave too little to remove.

    >>> floats = np.array([3.0, 1.0, -2.0, 4.0], np.float32)
    >>> stream = Stream("w", 4, "F32", lambda: iter([floats.view(np.uint32)]))
    >>> allocate_streams([stream], 0.5)
    {'w': Removal(value=2.0, num_equal=1, num_removed=2)}
    """
    check_numbers(sparsity, max_sparsity, min_keep)
    dtypes = {stream.dtype for stream in streams}
    wide = dtypes == {"F32"} or len(dtypes) > 1  # of unlike types all become fp32, which holds the others exactly
    found: dict[str, Removal] = {}
    for members in [[stream] for stream in streams] if scope == "tensor" else [list(streams)]:
        tallies = [
            _tally(stream, (already or {}).get(stream.path, Removal()), wide, max_sparsity, min_keep)
            for stream in members
        ]
        number = round(sparsity * sum(tally.numel for tally in tallies))
        found |= spend(tallies, number, cut=_cut, lost=lambda removal: removal.num_removed, leave=_leave)
    return {stream.path: found[stream.path] for stream in streams}


@dataclass(frozen=True)
class _Tally(Share):
    """A tensor as the histogram of the upper halves of its magnitudes' bits; those of lower halves come when needed."""

    stream: Stream
    before: Removal
    wide: bool
    upper: np.ndarray
    lowers: dict[int, np.ndarray] = field(default_factory=dict)  # only that of the last threshold is kept

    def lower(self, upper: int) -> np.ndarray:
        """Count the lower halves under one upper half, (65536,); (1,) where there are no lower halves."""
        if not self.wide:
            return self.upper[upper : upper + 1]
        if upper not in self.lowers:
            counts = np.zeros(_LOWER, self.upper.dtype)
            if self.upper[upper]:
                for bits in _wide_blocks(self.stream):
                    here = (bits >> 16 & 0x7FFF) == upper
                    counts += np.bincount(bits[here] & 0xFFFF, minlength=_LOWER).astype(counts.dtype)
            self.lowers.clear()
            self.lowers[upper] = counts
        return self.lowers[upper]


def _tally(stream: Stream, before: Removal, wide: bool, max_sparsity: float | None, min_keep: int) -> _Tally:
    """Count a tensor's upper halves, in one pass."""
    # Half the bytes where no count can pass their range: a group holds one histogram for each of its tensors.
    counts = np.zeros(_UPPER, np.uint32 if stream.numel < 1 << 32 else np.int64)
    for bits in _wide_blocks(stream) if wide else stream.blocks():
        upper = bits.view("<u2")[1::2] if wide else bits
        counts += np.bincount(upper & 0x7FFF, minlength=_UPPER).astype(counts.dtype)
    if counts[_INFINITE["F32" if wide else stream.dtype] :].any():
        raise not_finite(stream.path)
    cap = cap_of(stream.numel, before.num_removed, max_sparsity=max_sparsity, min_keep=min_keep)
    return _Tally(stream.path, stream.numel, before.num_removed, cap, stream, before, wide, counts)


def _wide_blocks(stream: Stream) -> Iterator[np.ndarray]:
    """Read a tensor as bits of fp32."""
    for bits in stream.blocks():
        yield bits if stream.dtype == "F32" else magnitudes(bits, stream.dtype).view(np.uint32)


def _leave(tally: _Tally) -> Removal:
    return tally.before


def _cut(tallies: Sequence[_Tally], budget: int) -> list[Removal]:
    """Remove the `budget` lowest of what is alive in these tensors, of equals the first."""
    alive_upper = [_without_lowest(tally.upper, tally.num_dead) for tally in tallies]
    upper, rank = _place(reduce(np.add, alive_upper), budget)
    alive_lower, unders = [], []
    for tally, alive in zip(tallies, alive_upper, strict=True):
        below = int(tally.upper[:upper].sum(dtype=np.int64))
        unders.append(below)
        counts = tally.lower(upper) if alive[upper] else np.zeros(_LOWER if tally.wide else 1, np.int64)
        alive_lower.append(_without_lowest(counts, max(0, tally.num_dead - below)))
    lower, equals_left = _place(reduce(np.add, alive_lower), rank)
    value = _value(upper, lower, tallies[0])
    found = []
    for tally, above, below, under in zip(tallies, alive_upper, alive_lower, unders, strict=True):
        taken = min(equals_left, int(below[lower]))
        equals_left -= taken
        new = int(above[:upper].sum()) + int(below[:lower].sum()) + taken
        if not new:
            found.append(tally.before)
            continue
        less = under + (int(tally.lower(upper)[:lower].sum(dtype=np.int64)) if lower else 0)
        found.append(Removal(value, tally.num_dead + new - less, tally.num_dead + new))
    return found


def _without_lowest(counts: np.ndarray, number: int) -> np.ndarray:
    """Take the lowest `number` elements out of a histogram: int64 (n,).

    >>> _without_lowest(np.array([2, 3, 1]), 4).tolist()
    [0, 1, 1]
    """
    counts = counts.astype(np.int64)
    return np.minimum(counts, np.maximum(np.cumsum(counts) - number, 0)) if number else counts


def _place(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """Find the bin of the element of a rank from 1, and its rank within the bin.

    >>> _place(np.array([2, 0, 3]), 3)
    (2, 1)
    """
    through = np.cumsum(counts)
    place = int(np.searchsorted(through, rank))
    return place, rank - (int(through[place - 1]) if place else 0)


def _value(upper: int, lower: int, tally: _Tally) -> float:
    """Put the halves of a magnitude's bits together and read them as the float that they are."""
    if tally.wide:
        return float(np.uint32(upper << 16 | lower).view(np.float32))
    return float(magnitudes(np.array([upper], np.uint16), tally.stream.dtype)[0])


def check_dtype(path: str, dtype: str) -> None:
    """Refuse a tensor whose magnitudes cannot be ordered by 32 bits.

    Args:
        path: its name.
        dtype: in safetensors' words.

    Raises:
        MaskError: it is none of F32, F16 and BF16.
    """
    if dtype not in DTYPES:
        raise MaskError(f"{path}: holds {dtype}; only {', '.join(DTYPES)} can be pruned by shards. Convert it first.")
