"""Paired bootstrap: whether one set of outputs is better than another on the same rows, or whether that cannot be told.

Source: Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation, W04-3250. Both outputs are scored
on the same resampled rows, so that rows which are hard for both do not blur their difference. Deviations: the test is
two-sided (a verdict needs the whole 95 % interval of the difference on one side of 0, where the paper asks for 95 % of
the resamples); the interval is widened to the difference itself, as in bootstrap.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.errors import DataError
from secateur.evaluation.bootstrap import interval
from secateur.evaluation.figures import Sample
from secateur.tasks.pairs import Pairs, Source

BETTER, WORSE, OPEN = "better", "worse", "cannot tell"
_SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True)
class Difference:
    """How far a figure lies from that of the first outputs.

    Args:
        value: this figure minus the first.
        low: lower end of the 95 % interval; None when a user's function gave one number for all rows.
        high: upper end, likewise.
        verdict: better, worse or cannot tell; None for a figure that has no better direction, or no interval.
    """

    value: float
    low: float | None
    high: float | None
    verdict: str | None


def compare_samples(first: Mapping[str, Sample], other: Mapping[str, Sample]) -> dict[str, Difference]:
    """Compare two sets of outputs figure by figure.

    Args:
        first: from `figures.resample`: what is compared with.
        other: made with the same metrics, rows, seed and number of resamples.

    Returns:
        Figure name -> difference, in the order of `first`.

    >>> samples = [Sample(value, np.array([value, value]), "%", False) for value in (20.0, 15.0)]
    >>> compare_samples({"per": samples[0]}, {"per": samples[1]})
    {'per': Difference(value=-5.0, low=-5.0, high=-5.0, verdict='better')}
    """
    return {name: _difference(sample, other[name]) for name, sample in first.items()}


def _difference(first: Sample, other: Sample) -> Difference:
    value = other.value - first.value
    if first.resampled is None or other.resampled is None:
        return Difference(value, None, None, None)
    lows, highs = interval(np.array([value]), (other.resampled - first.resampled)[:, None])
    low, high = float(lows[0]), float(highs[0])
    return Difference(value, low, high, _verdict(low, high, first.higher_is_better))


def _verdict(low: float, high: float, higher_is_better: bool | None) -> str | None:
    """Judge an interval of differences.

    >>> _verdict(0.1, 0.3, True), _verdict(0.1, 0.3, False), _verdict(0.0, 0.3, True), _verdict(0.1, 0.3, None)
    ('better', 'worse', 'cannot tell', None)
    """
    if higher_is_better is None:
        return None
    if low <= 0.0 <= high:
        return OPEN
    return BETTER if (low > 0.0) == higher_is_better else WORSE


def check_same_rows(names: Sequence[str], rows: Sequence[Pairs]) -> None:
    """Refuse outputs that were not written for the same rows.

    Args:
        names: what messages call the outputs.
        rows: what each was written for, as many as names.

    Raises:
        DataError: a source or a row's references differ, or there are not as many rows; the first such row is named.

    >>> try:
    ...     check_same_rows(["A", "B"], [Pairs(("a",), (("x",),)), Pairs(("b",), (("x",),))])
    ... except DataError as error:
    ...     print(error)
    A and B cannot be compared: row 1 has the source 'a' in A, and 'b' in B. Compare outputs of one split.
    """
    for name, other in zip(names[1:], rows[1:], strict=True):
        fault = _first_fault(names[0], rows[0], name, other)
        if fault:
            raise DataError(f"{names[0]} and {name} cannot be compared: {fault} Compare outputs of one split.")


def _first_fault(first_name: str, first: Pairs, name: str, other: Pairs) -> str:
    for index in range(min(len(first), len(other))):
        for what, mine, theirs in (
            ("source", first.sources[index], other.sources[index]),
            ("references", list(first.references[index]), list(other.references[index])),
        ):
            if mine != theirs:
                shown, other_shown = _from_difference(*_differing(mine, theirs))
                return f"row {index + 1} has the {what} {shown} in {first_name}, and {other_shown} in {name}."
    if len(first) != len(other):
        return f"{first_name} has {len(first):,} rows, and {name} has {len(other):,}."
    return ""


def _differing(mine: Source | list[str], theirs: Source | list[str]) -> tuple[Any, Any]:
    """Take the first text that differs of two sources that have two each.

    >>> _differing(("a", "b"), ("a", "c")), _differing("a", ("a", "c"))
    (('b', 'c'), ('a', ['a', 'c']))
    """
    if isinstance(mine, tuple) and isinstance(theirs, tuple):
        return next((one, other) for one, other in zip(mine, theirs, strict=True) if one != other)
    one, other = (list(value) if isinstance(value, tuple) else value for value in (mine, theirs))
    return one, other


def _from_difference(mine: str | list[str], theirs: str | list[str]) -> tuple[str, str]:
    """Show two values from shortly before the place where they part, so that long texts can be told apart.

    >>> _from_difference("a" * 100 + "b", "a" * 100 + "c")
    ("'...aaaaaaaaaab'", "'...aaaaaaaaaac'")
    """
    if isinstance(mine, list) or isinstance(theirs, list):
        return f"{mine!r:.{_SHOWN}}", f"{theirs!r:.{_SHOWN}}"
    pairs = zip(mine, theirs, strict=False)
    place = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))
    start = max(0, place - 10) if place > _SHOWN // 2 else 0
    dots = "..." if start else ""
    return repr(dots + mine[start : start + _SHOWN]), repr(dots + theirs[start : start + _SHOWN])
