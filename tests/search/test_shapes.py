"""Shapes: a clock tells times it has not seen, and the cheapest of what is fast enough comes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.search.shapes import AXES, Clock, Shape, candidates, levels, sparsities, to_time

sizes = st.builds(Shape, st.integers(2, 8), st.integers(2, 8), st.integers(2, 16), st.integers(16, 4096))
costs = st.lists(st.floats(0.01, 10.0), min_size=7, max_size=7)


def grid(dense: Shape) -> dict[str, tuple[int, ...]]:
    return {axis: levels(getattr(dense, axis), axis) for axis in AXES}


def made(shape: Shape, dense: Shape, parts: list[float]) -> float:
    heads, neurons = shape.heads / dense.heads, shape.neurons / dense.neurons
    encoder = shape.encoder_layers * (parts[1] + parts[2] * heads + parts[3] * neurons)
    decoder = shape.decoder_layers * (parts[4] + parts[5] * heads + parts[6] * neurons)
    return parts[0] + encoder + decoder


@given(sizes, costs)
def test_a_clock_tells_every_shape_of_times_that_add_up(dense: Shape, parts: list[float]) -> None:
    clock = Clock.fit(dense, {shape: made(shape, dense, parts) for shape in to_time(dense, grid(dense))})
    for counts in ((1, 2, 2, 16), (2, 1, 1, 16)):
        shape = Shape(*counts)
        told = clock(shape) * made(dense, dense, parts)
        assert told == pytest.approx(made(shape, dense, parts), rel=1e-4)


@given(sizes, costs, st.floats(0.3, 0.95))
def test_candidates_are_fast_enough_and_ordered(dense: Shape, parts: list[float], share: float) -> None:
    rises = {axis: {count: 1.0 - count / counts[-1] for count in counts} for axis, counts in grid(dense).items()}

    def time_of(shape: Shape) -> float:
        return made(shape, dense, parts) / made(dense, dense, parts)

    try:
        found = candidates(dense, rises, time_of, share)
    except SecateurError as error:
        least = Shape(*(counts[0] for counts in grid(dense).values()))
        assert time_of(least) > share and "even the fastest shape" in str(error)
        return
    assert all(each.share <= share for each in found)
    assert [each.rise for each in found] == sorted(each.rise for each in found)
    layers = [(each.shape.encoder_layers, each.shape.decoder_layers) for each in found]
    assert len(set(layers)) == len(layers)


def test_fewer_units_never_cost_less() -> None:
    dense = Shape(2, 2, 2, 2)
    rises = {axis: {1: -1.0} for axis in AXES}  # noise: without half of it the loss is lower
    found = candidates(dense, rises, lambda shape: shape.heads / 2, 0.5)
    assert found[0].rise == 0.0


@given(sizes)
def test_levels_rise_to_the_whole(dense: Shape) -> None:
    for counts in grid(dense).values():
        assert list(counts) == sorted(set(counts)) and counts[0] >= 1
    assert to_time(dense, grid(dense))[0] == dense
    assert sparsities(dense, dense) == {}
