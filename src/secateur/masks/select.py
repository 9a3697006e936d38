"""Find, exactly, the value below which the k lowest of many scores lie, without sorting or copying them.

A random sample brackets the k-th value between two of its own values; one pass in chunks counts what lies below the
bracket and gathers what lies inside it (a few percent); the k-th value is found among those. A bracket that misses, or
that holds too much, is moved or narrowed and the pass repeated: luck decides the time, never the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 16  # elements a pass works on: 256 KB of scores stay in the second-level cache
SAMPLE = 1 << 17  # elements sampled for a bracket: its ends are then off by about 0.15 % of the elements
ROOM = 1 << 16  # elements that may always be gathered, however few there are in all
FEW = 64  # a smaller sample says too little
SPREAD = 4.0  # standard deviations of the sample's rank left on either side


@dataclass(frozen=True)
class Part:
    """One tensor's scores and what is still alive in it.

    Attributes:
        values: flat, float32 or float64, finite.
        alive: flat bool of the same length; None = all of it.
    """

    values: np.ndarray
    alive: np.ndarray | None = None

    @cached_property
    def num_alive(self) -> int:
        """Number of elements that are not removed yet."""
        return self.values.size if self.alive is None else int(np.count_nonzero(self.alive))


@dataclass(frozen=True)
class Cut:
    """Everything below `value` goes, and of what equals it the first `num_equal_removed` of `num_equal`."""

    value: float
    num_equal_removed: int
    num_equal: int


def find_cut(parts: Sequence[Part], num_removed: int) -> Cut:
    """Find the cut that removes exactly so many of the elements that are alive.

    Args:
        parts: the tensors, in their order.
        num_removed: 1 <= num_removed <= number alive.

    Returns:
        The cut.

    >>> find_cut([Part(np.array([3.0, 1.0, 2.0])), Part(np.array([1.0, 5.0]))], 2)
    Cut(value=1.0, num_equal_removed=2, num_equal=2)
    """
    # The answer lies in the open bracket (low, high): `below` elements are <= low, `inside` are in the bracket.
    low, high, below, inside = -math.inf, math.inf, 0, sum(part.num_alive for part in parts)
    assert 1 <= num_removed <= inside
    room, generator = max(ROOM, inside // 32), np.random.default_rng(0)
    while True:
        near = _narrow(parts, low, high, (num_removed - below) / inside, generator) if inside > room else (low, high)
        if near == (low, high):
            room = inside
        num_low, num_near, found = _scan(parts, *near, room)
        if num_removed <= num_low:
            less = _count(parts, near[0], np.less)
            if num_removed > less:
                return Cut(near[0], num_removed - less, num_low - less)
            high, inside = near[0], less - below
        elif num_removed > num_low + num_near:
            through = _count(parts, near[1], np.less_equal)
            if num_removed <= through:
                return Cut(near[1], num_removed - num_low - num_near, through - num_low - num_near)
            low, below, inside = near[1], through, below + inside - through
        elif found is None:
            (low, high), below, inside = near, num_low, num_near
        else:
            return _cut_found(found, num_removed - num_low)


def keep_above(parts: Sequence[Part], cut: Cut) -> list[Tensor]:
    """Write the masks of a cut.

    Args:
        parts: the tensors, in the order that decides among equals.
        cut: from `find_cut` on the same parts.

    Returns:
        One flat bool tensor per part, True = keep: alive, and above the cut or among the later of its equals.

    >>> parts = [Part(np.array([3.0, 1.0, 2.0])), Part(np.array([1.0, 5.0]))]
    >>> [mask.tolist() for mask in keep_above(parts, Cut(1.0, 1, 2))]
    [[True, False, True], [True, True]]
    """
    masks, to_remove = [], cut.num_equal_removed
    for part in parts:
        mask = torch.empty(part.values.size, dtype=torch.bool)
        for start, values, alive in _chunks(part):
            kept = mask.numpy()[start : start + values.size]
            np.greater(values, cut.value, out=kept)
            if cut.num_equal_removed < cut.num_equal:
                to_remove -= keep_later_equals(kept, values == cut.value, alive, to_remove)
            if alive is not None:
                kept &= alive
        masks.append(mask)
    return masks


def keep_later_equals(kept: np.ndarray, equal: np.ndarray, alive: np.ndarray | None, to_remove: int) -> int:
    """Mark a chunk's equals as kept, all but the first `to_remove`.

    Args:
        kept: bool (n,), changed.
        equal: bool (n,), what equals the cut's value; changed.
        alive: bool (n,); None = all of it.
        to_remove: how many of the equals have still to go.

    Returns:
        How many of them went here.

    >>> kept = np.array([True, False, False])
    >>> keep_later_equals(kept, np.array([False, True, True]), None, 1), kept.tolist()
    (1, [True, False, True])
    """
    if alive is not None:
        equal &= alive
    num_equal = int(np.count_nonzero(equal))
    if 0 < to_remove < num_equal:
        equal &= np.cumsum(equal, dtype=np.int32) > to_remove
    if to_remove < num_equal:
        kept |= equal
    return min(to_remove, num_equal)


def _chunks(part: Part) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Walk through a part: start index, scores, and what is alive of them."""
    for start in range(0, part.values.size, CHUNK):
        end = start + CHUNK
        yield start, part.values[start:end], None if part.alive is None else part.alive[start:end]


def _narrow(
    parts: Sequence[Part], low: float, high: float, share: float, generator: np.random.Generator
) -> tuple[float, float]:
    """Guess a small bracket inside (low, high) around its element at `share` (0 to 1) of the way, from a sample."""
    total = sum(part.values.size for part in parts)
    drawn = [_draw(part, math.ceil(SAMPLE * part.values.size / total), generator) for part in parts]
    sample = np.concatenate(drawn)
    sample = np.sort(sample[(sample > low) & (sample < high)])
    if sample.size < FEW:  # hardly anything is alive: gathering it is cheap
        return low, high
    middle, spread = share * sample.size, SPREAD * math.sqrt(sample.size * share * (1 - share)) + SPREAD
    first, last = math.floor(middle - spread), math.ceil(middle + spread)
    return (float(sample[first]) if first >= 0 else low), (float(sample[last]) if last < sample.size else high)


def _draw(part: Part, num_drawn: int, generator: np.random.Generator) -> np.ndarray:
    """Draw so many of a part's scores at random and keep those that are alive."""
    positions = generator.integers(0, part.values.size, num_drawn)
    drawn = part.values[positions]
    return drawn if part.alive is None else drawn[part.alive[positions]]


def _scan(parts: Sequence[Part], low: float, high: float, room: int) -> tuple[int, int, np.ndarray | None]:
    """Count what is alive and below high, in two: not in (low, high), and in it; gather the latter if it fits."""
    num_high, num_near, found = 0, 0, []
    for part in parts:
        for _, values, alive in _chunks(part):
            near = values < high
            if alive is not None:
                near &= alive
            num_high += int(np.count_nonzero(near))
            near &= values > low
            num_near += int(np.count_nonzero(near))
            if num_near <= room:
                found.append(values[near])
    return num_high - num_near, num_near, np.concatenate(found) if num_near <= room else None


def _count(parts: Sequence[Part], value: float, compare: np.ufunc) -> int:
    """Count what is alive and compares as asked with a value."""
    count = 0
    for part in parts:
        for _, values, alive in _chunks(part):
            hit = compare(values, value)
            count += int(np.count_nonzero(hit if alive is None else hit & alive))
    return count


def _cut_found(found: np.ndarray, rank: int) -> Cut:
    """Find the cut among the gathered scores; rank counts from 1. The array is reordered."""
    found.partition(rank - 1)
    value = found[rank - 1]
    less = int(np.count_nonzero(found < value))
    return Cut(float(value), rank - less, int(np.count_nonzero(found == value)))
