"""Budgets are spent where they cost least, and never more than they are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.search.curves import Curve, spend

SHARES = (0.25, 0.5, 0.75)


@st.composite
def curves(draw: st.DrawFn) -> list[Curve]:
    number = draw(st.integers(1, 4))
    return [
        Curve(
            f"group {index}",
            draw(st.integers(20, 400)),
            tuple((share, draw(st.floats(-0.1, 3.0))) for share in SHARES),
        )
        for index in range(number)
    ]


@given(curves(), st.floats(0, 1))
def test_the_budget_is_met_and_the_hulls_marginal_costs_are_equal(found: list[Curve], share: float) -> None:
    most = sum(0.75 * curve.num_elements for curve in found)
    count = int(share * most)
    chosen = spend(found, count)
    removed = sum(chosen[curve.name] * curve.num_elements for curve in found)
    assert removed == pytest.approx(count, abs=0.01 * len(found))
    assert all(0 <= sparsity <= 0.75 for sparsity in chosen.values())


@given(curves(), st.integers(0, 3))
def test_no_other_choice_of_the_hulls_corners_is_cheaper(found: list[Curve], steps: int) -> None:
    corners = [[place for place, _ in curve.hull] for curve in found]
    for choice in itertools.product(*corners):
        count = round(sum(place * curve.num_elements for place, curve in zip(choice, found, strict=True)))
        cost = sum(curve.rise_at(place) for place, curve in zip(choice, found, strict=True))
        ours = spend(found, count)
        mine = sum(curve.rise_at(ours[curve.name]) for curve in found)
        slack = max(cost, 1.0) * 0.02 + 0.5 * max(
            (b[1] - a[1]) / (b[0] - a[0]) / curve.num_elements
            for curve in found
            for a, b in itertools.pairwise(curve.hull)
        )  # the count is rounded to whole elements
        assert mine <= cost + slack


@given(curves())
def test_hulls_are_convex_below_the_points_and_never_fall(found: list[Curve]) -> None:
    for curve in found:
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(curve.hull)]
        assert slopes == sorted(slopes) and all(slope >= 0 for slope in slopes)
        best = 0.0
        for sparsity, rise in curve.points:
            best = max(best, rise)
            assert curve.rise_at(sparsity) <= best + 1e-9


def test_more_than_the_curves_show_is_refused() -> None:
    with pytest.raises(SecateurError, match="the curves end where 75 are gone"):
        spend([Curve("a", 100, ((0.75, 1.0),))], 90)


def test_what_must_go_goes_first() -> None:
    cheap, dear = Curve("cheap", 100, ((0.8, 0.1),)), Curve("dear", 100, ((0.8, 0.9),))
    assert spend([cheap, dear], 60, least={"dear": 0.3}) == {"cheap": 0.3, "dear": 0.3}
