"""A sweep's sentence names the best cell, and the fastest that is as good."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.report.sweep import main_metric, reading


def cell(beams: int, tokens: int, value: float, latency: float, *, higher: bool | None = True) -> dict[str, Any]:
    figure = {"value": value, "low": value - 0.02, "high": value + 0.02, "unit": "", "higher_is_better": higher}
    return {"num_beams": beams, "max_new_tokens": tokens, "metrics": {"q": figure}, "latency_ms": latency}


@pytest.mark.parametrize("higher", [True, False])
def test_the_fastest_that_reaches_the_best(higher: bool) -> None:
    sign = 1 if higher else -1
    values = {(1, 19): -0.10, (1, 63): -0.01, (5, 63): 0.0, (5, 127): -0.005}
    cells = [
        cell(beams, tokens, 0.5 + sign * value, 10.0 * beams * tokens, higher=higher)
        for (beams, tokens), value in values.items()
    ]
    told = reading(cells)
    assert told.startswith("q is best with 5 beams, 63 tokens")
    assert "reaches that is greedy, 63 tokens" in told and "5.0 times faster" in told


def test_without_a_direction_there_is_no_best() -> None:
    cells = [cell(1, 19, 0.5, 1.0, higher=None)]
    assert main_metric(cells) is None and "direction" in reading(cells) and main_metric([]) is None
