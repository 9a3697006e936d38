"""Budgets in elements, and shifts that keep them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.search.budget import LEAST, num_removed, shifted


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("counted", 0.0, "above 0"),
        ("stored", 1.5, "above 0"),
        ("counted", 0.05, "cannot be reached: the groups hold 900 of 1,000"),
        ("bytes", 400, "even without them 512.5 would be left"),
    ],
)
def test_what_cannot_be_reached_is_refused(kind: str, value: float, told: str) -> None:
    with pytest.raises(SecateurError, match=told):
        num_removed(kind, value, num_parameters=1000, num_prunable=900)  # type: ignore[arg-type]


def test_a_budget_that_is_met_removes_nothing() -> None:
    assert num_removed("counted", 1.0, num_parameters=1000, num_prunable=900) == 0
    assert num_removed("bytes", 1e9, num_parameters=1000, num_prunable=900) == 0


@given(
    st.dictionaries(
        st.sampled_from("abcde"), st.tuples(st.floats(LEAST, 0.9), st.integers(100, 5000), st.floats(-1, 1)), min_size=1
    )
)
def test_shifts_keep_the_budget(groups: dict[str, tuple[float, int, float]]) -> None:
    sparsities = {name: share for name, (share, _, _) in groups.items()}
    sizes = {name: size for name, (_, size, _) in groups.items()}
    moved = shifted(sparsities, sizes, {name: offset for name, (_, _, offset) in groups.items()})
    before, after = (sum(found[name] * sizes[name] for name in sizes) for found in (sparsities, moved))
    assert after == pytest.approx(before, rel=1e-4, abs=0.1)
    assert all(LEAST - 1e-6 <= share <= 0.99 for share in moved.values())  # none is left out of the recipe


def test_no_offset_moves_nothing() -> None:
    start = {"a": 0.3, "b": 0.8}
    assert shifted(start, {"a": 10, "b": 30}, {}) == pytest.approx(start, abs=1e-5)
