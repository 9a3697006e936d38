"""Shapes that a model can be cut to, how long each takes, and which of the fast ones costs least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from secateur.errors import SecateurError

AXES = ("encoder_layers", "decoder_layers", "heads", "neurons")
STEPS = 8  # how finely heads and neurons are searched


@dataclass(frozen=True)
class Shape:
    """How large a model is: layers of each stack, and heads and neurons of every layer, the same in both stacks."""

    encoder_layers: int
    decoder_layers: int
    heads: int
    neurons: int

    @property
    def name(self) -> str:
        """As a word for files and tables.

        >>> Shape(6, 2, 4, 1024).name
        '6-2-4-1024'
        """
        return "-".join(str(getattr(self, axis)) for axis in AXES)

    def with_(self, axis: str, count: int) -> Shape:
        """Change one axis."""
        return replace(self, **{axis: count})


def levels(count: int, axis: str) -> tuple[int, ...]:
    """List the counts that are searched along an axis, ascending, the whole count last.

    >>> levels(6, "heads"), levels(2048, "neurons")[:3], levels(4, "encoder_layers")
    ((1, 2, 3, 4, 5, 6), (256, 512, 768), (1, 2, 3, 4))
    """
    if axis in ("encoder_layers", "decoder_layers") or count <= STEPS:
        return tuple(range(1, count + 1))
    return tuple(sorted({max(1, round(count * step / STEPS)) for step in range(1, STEPS + 1)}))


def to_time(dense: Shape, allowed: Mapping[str, Sequence[int]]) -> tuple[Shape, ...]:
    """List the shapes that a clock is fitted to: the dense one first, then halves of one axis and of several.

    Args:
        dense: the whole shape.
        allowed: axis -> the counts that are searched, ascending, the whole count last.

    Returns:
        Each shape once.

    >>> dense = Shape(4, 4, 4, 256)
    >>> [shape.name for shape in to_time(dense, {axis: levels(getattr(dense, axis), axis) for axis in AXES})][:3]
    ['4-4-4-256', '2-4-4-256', '4-2-4-256']
    """
    half = {axis: min(counts, key=lambda count: abs(count - counts[-1] / 2)) for axis, counts in allowed.items()}
    least = {axis: counts[0] for axis, counts in allowed.items()}
    together = (
        ("encoder_layers", "heads"),
        ("encoder_layers", "neurons"),
        ("decoder_layers", "heads", "neurons"),
        AXES,
    )
    wanted = [
        {},
        *({axis: half[axis]} for axis in AXES),
        *({axis: half[axis] for axis in axes} for axes in together),
        least,
    ]
    return tuple(dict.fromkeys(replace(dense, **counts) for counts in wanted))


@dataclass(frozen=True)
class Clock:
    """How long a shape takes, in the dense model's time: a constant, and for each layer of a stack what its parts take.

    Attributes:
        dense: the whole shape.
        coefficients: of (1, E, E h, E n, D, D h, D n), with E and D the layers of encoder and decoder, and h and n the
            shares of the dense model's heads and neurons.
        error: the largest relative error on what it was fitted to.
    """

    dense: Shape
    coefficients: tuple[float, ...]
    error: float

    def __call__(self, shape: Shape) -> float:
        """Predict a shape's share of the dense model's time."""
        return float(np.dot(_terms(shape, self.dense), self.coefficients))

    @classmethod
    def fit(cls, dense: Shape, times: Mapping[Shape, float]) -> Clock:
        """Fit to measured times.

        Args:
            dense: the whole shape; its time is among them.
            times: shape -> milliseconds.

        Returns:
            The clock; relative errors weigh alike, short times as much as long ones.

        >>> dense = Shape(4, 4, 4, 8)
        >>> shapes = to_time(dense, dict(zip(AXES, ((2, 4), (2, 4), (2, 4), (4, 8)))))
        >>> times = {at: 10.0 + 2 * at.encoder_layers + at.decoder_layers * at.heads for at in shapes}
        >>> clock = Clock.fit(dense, times)
        >>> round(34 * clock(Shape(3, 1, 2, 8)), 6), round(clock.error, 6)
        (18.0, 0.0)
        """
        shapes = list(times)
        shares = np.array([times[shape] / times[dense] for shape in shapes])
        terms = np.array([_terms(shape, dense) for shape in shapes])
        found = np.linalg.lstsq(terms / shares[:, None], np.ones(len(shapes)), rcond=None)[0]
        error = float(np.max(np.abs(terms @ found / shares - 1)))
        return cls(dense, tuple(float(value) for value in found), error)


def _terms(shape: Shape, dense: Shape) -> tuple[float, ...]:
    heads, neurons = shape.heads / dense.heads, shape.neurons / dense.neurons
    encoder, decoder = shape.encoder_layers, shape.decoder_layers
    return 1.0, encoder, encoder * heads, encoder * neurons, decoder, decoder * heads, decoder * neurons


@dataclass(frozen=True)
class Candidate:
    """A shape, its predicted share of the dense model's time, and by how much the loss is predicted to rise."""

    shape: Shape
    share: float
    rise: float


def candidates(
    dense: Shape, rises: Mapping[str, Mapping[int, float]], time_of: Callable[[Shape], float], share: float
) -> list[Candidate]:
    """List the shapes that are fast enough: the best of every number of layers, the least rise first.

    That rises of the axes add up is an assumption, and layers cost less after retraining than it says: so the list has
    one shape for every number of layers, for short runs to choose among.

    Args:
        dense: the whole shape.
        rises: axis -> count -> rise of the loss when this axis alone is cut so far; counts that are missing are not
            searched. Where fewer units seem to cost less, they count as costing the same.
        time_of: a shape's share of the dense model's time.
        share: the most that it may be, above 0.

    Returns:
        At least one.

    Raises:
        SecateurError: no shape is fast enough.

    >>> flat = {axis: {1: 1.0, 2: 0.0} for axis in AXES}
    >>> found = candidates(Shape(2, 2, 2, 2), flat, lambda shape: shape.heads / 2, 0.5)
    >>> [(candidate.shape.name, candidate.rise) for candidate in found][:2]
    [('2-2-1-2', 1.0), ('2-1-1-2', 2.0)]
    """
    costs = {axis: _monotone({**rises[axis], getattr(dense, axis): 0.0}) for axis in AXES}
    best: dict[tuple[int, int], Candidate] = {}
    fastest = float("inf")
    for counts in product(*(costs[axis] for axis in AXES)):
        shape = Shape(*counts)
        taken = time_of(shape)
        fastest = min(fastest, taken)
        if taken > share:
            continue
        rise = sum(costs[axis][getattr(shape, axis)] for axis in AXES)
        layers = (shape.encoder_layers, shape.decoder_layers)
        if layers not in best or (rise, -taken) < (best[layers].rise, -best[layers].share):
            best[layers] = Candidate(shape, taken, rise)
    if not best:
        raise SecateurError(
            f"latency_ms: even the fastest shape takes about {fastest:.3g} of the dense model's time, and {share:.3g} "
            "of it is asked for. Ask for more milliseconds, or choose a faster engine."
        )
    return sorted(best.values(), key=lambda found: (found.rise, found.share))


def _monotone(costs: Mapping[int, float]) -> dict[int, float]:
    """Let no smaller count cost less than a larger one."""
    found, most = {}, 0.0
    for count in sorted(costs, reverse=True):
        most = max(most, costs[count])
        found[count] = most
    return found


def sparsities(shape: Shape, dense: Shape) -> dict[str, float]:
    """Say which share of each axis goes.

    >>> sparsities(Shape(4, 1, 3, 8), Shape(4, 4, 4, 8))
    {'decoder_layers': 0.75, 'heads': 0.25}
    """
    shares = {axis: round(1 - getattr(shape, axis) / getattr(dense, axis), 6) for axis in AXES}
    return {axis: share for axis, share in shares.items() if share > 0}


__all__ = ["AXES", "Candidate", "Clock", "Shape", "candidates", "levels", "sparsities", "to_time"]
