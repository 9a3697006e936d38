"""Sensitivity curves: what each group of weights costs at each sparsity, and which sparsities a budget buys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from secateur.errors import SecateurError
from secateur.search.budget import rounded_up

Point = tuple[float, float]
Measure = Literal["loss", "divergence"]  # what a group costs: the loss's rise, or the distance from the dense outputs


@dataclass(frozen=True)
class Curve:
    """What one group costs.

    Attributes:
        name: of the group, such as "encoder feed_forward".
        num_elements: of the group.
        points: (sparsity, rise of the loss, or divergence from the dense model), sparsities ascending, above 0 and
            below 1; the dense model is (0, 0).
    """

    name: str
    num_elements: int
    points: tuple[Point, ...]

    @property
    def hull(self) -> tuple[Point, ...]:
        """The lower convex hull of the points and (0, 0), where the cost never falls: along it marginal costs rise.

        >>> Curve("a", 10, ((0.25, -0.1), (0.5, 0.4), (0.75, 0.5))).hull
        ((0.0, 0.0), (0.25, 0.0), (0.75, 0.5))
        """
        best, monotone = 0.0, [(0.0, 0.0)]
        for sparsity, rise in self.points:
            best = max(best, rise)
            monotone.append((sparsity, best))
        hull: list[Point] = []
        for point in monotone:
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
                hull.pop()
            hull.append(point)
        return tuple(hull)

    def rise_at(self, sparsity: float) -> float:
        """Read the hull at a sparsity between 0 and the last point's.

        >>> Curve("a", 10, ((0.5, 1.0),)).rise_at(0.25)
        0.5
        """
        hull = self.hull
        for (left, low), (right, high) in pairwise(hull):
            if sparsity <= right:
                return low + (high - low) * (sparsity - left) / (right - left)
        return hull[-1][1]


def _slope(left: Point, right: Point) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def spend(curves: Sequence[Curve], num_removed: int, *, least: Mapping[str, float] | None = None) -> dict[str, float]:
    """Choose sparsities that remove so many elements in all at the least sum of rises.

    The curves' hulls are convex, so taking the cheapest stretch of any of them again and again is optimal for them.
    That the rises add up is an assumption: groups that make up for each other cost more together.

    Args:
        curves: of groups that do not overlap.
        num_removed: elements to remove in all, at least 0.
        least: group -> sparsity that it has at least.

    Returns:
        Group -> sparsity; at most that of its curve's last point.

    Raises:
        SecateurError: even the last points together remove less.

    >>> cheap, dear = Curve("cheap", 100, ((0.8, 0.1),)), Curve("dear", 100, ((0.8, 0.9),))
    >>> spend([cheap, dear], 100)
    {'cheap': 0.8, 'dear': 0.2}
    """
    chosen = {curve.name: (least or {}).get(curve.name, 0.0) for curve in curves}
    left = num_removed - sum(chosen[curve.name] * curve.num_elements for curve in curves)
    most = sum(curve.num_elements * curve.hull[-1][0] for curve in curves)
    if num_removed > most + 0.5:
        raise SecateurError(
            f"{num_removed:,} elements are to go, and the curves end where {int(most):,} are gone. Measure higher "
            "sparsities, or ask for less."
        )
    stretches = sorted(
        (_slope(first, second) / curve.num_elements, index, first[0], second[0])
        for index, curve in enumerate(curves)
        for first, second in pairwise(curve.hull)
    )
    for _, index, first, second in stretches:
        curve = curves[index]
        room = (second - max(first, chosen[curve.name])) * curve.num_elements
        if left <= 0 or room <= 0:
            continue
        taken = min(room, left)
        chosen[curve.name] = second if taken == room else max(first, chosen[curve.name]) + taken / curve.num_elements
        left -= taken
    return {curve.name: rounded_up(chosen[curve.name], most=curve.hull[-1][0]) for curve in curves}


__all__ = ["Curve", "Measure", "spend"]
