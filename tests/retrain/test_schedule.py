"""When a gradual pruning takes its steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.recipe import names
from secateur.retrain.schedule import PACES, Steps


def test_the_paces_are_what_a_recipe_may_name() -> None:
    assert {"one_shot", *PACES} == set(names.words(names.Schedule))


@given(
    kind=st.sampled_from(sorted(PACES)),
    num_steps=st.integers(1, 300),
    start=st.floats(0, 0.99),
    end=st.floats(0.01, 1.0),
    every=st.integers(1, 400),
)
def test_shares_rise_to_one_and_a_step_follows_each(
    kind: str, num_steps: int, start: float, end: float, every: int
) -> None:
    shares = Steps(kind, min(start, end), end, every).shares(num_steps)
    steps = list(shares)
    assert steps == sorted(steps) and steps[0] >= 0 and steps[-1] < num_steps
    assert all(0 < one < two for one, two in pairwise(shares.values()))
    assert list(shares.values())[-1] == 1.0
    gaps = {later - earlier for earlier, later in pairwise(steps[:-1])}
    assert gaps <= {every}


@given(
    kind=st.sampled_from(sorted(PACES)),
    num_steps=st.integers(1, 60),
    start=st.floats(0, 0.99),
    end=st.floats(0.01, 1.0),
)
def test_pressure_rises_from_nothing_to_all(kind: str, num_steps: int, start: float, end: float) -> None:
    steps = Steps(kind, min(start, end), end, 2)
    found = [steps.pressure(step, num_steps) for step in range(num_steps + 1)]
    assert all(0.0 <= one <= two <= 1.0 for one, two in pairwise(found)) and found[-1] == 1.0


def test_cubic_is_the_papers() -> None:
    shares = Steps("cubic", 0.2, 0.8, 10).shares(100)
    for step, share in shares.items():
        assert share == pytest.approx(1 - (1 - (step - 20) / 60) ** 3)
    assert min(shares) == 30 and max(shares) == 80
