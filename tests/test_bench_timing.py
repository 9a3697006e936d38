"""Engines take turns, the first round is not timed, and speed-ups are against the fastest dense engine."""

from __future__ import annotations

from typing import Any

import pytest

from secateur import bench_timing
from secateur.artefact import Artefact
from secateur.bench_entries import Entry, Work
from secateur.bench_timing import Turn, compare_rows, row_of, time_turns
from secateur.evaluation.engine import Generated

ENTRIES = [Entry("m", name, f"1-{name}", Artefact("m", "transformers", "0" * 64, 5)) for name in ("hf-fp32", "hf-bf16")]


@pytest.mark.parametrize("exactly", [True, False])
def test_engines_take_turns_and_the_first_round_is_not_timed(monkeypatch: pytest.MonkeyPatch, exactly: bool) -> None:
    calls: list[tuple[str, int, int, int]] = []
    now = [0.0]

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def generate(self, rows: list[list[int]], *, max_new_tokens: int, min_new_tokens: int) -> list[Generated]:
            calls.append((self.name, rows[0][0], max_new_tokens, min_new_tokens))
            now[0] += max_new_tokens
            return [Generated([7] * max_new_tokens, truncated=True) for _ in rows]

    monkeypatch.setattr(bench_timing, "_clock", lambda: now[0])
    work = Work(None, 2, 5, new_tokens=4, exactly=exactly)
    fakes = {entry: Fake(entry.engine) for entry in ENTRIES}
    found = time_turns(fakes, {entry: [[1], [2]] for entry in ENTRIES}, work, size=1, repeats=2)
    assert calls == [
        (entry.engine, text, length, length if exactly else 0)
        for _ in range(3)
        for text in (1, 2)
        for entry in ENTRIES
        for length in (1, 1, 4)
    ]
    assert found == {entry: [(4.0, 1.0, 4, 4)] * 4 for entry in ENTRIES}
    row = row_of(ENTRIES[0], found[ENTRIES[0]], size=1, threads=1)
    assert (row["latency_ms"], row["first_token_ms"], row["ms_per_token"]) == (4000.0, 1000.0, 1000.0)
    assert row_of(ENTRIES[0], [Turn(1.0, 1.5, 4, 4)], size=1, threads=1)["ms_per_token"] is None  # noise
    assert (row["tokens_per_second"], row["tokens_per_text"], row["num_bytes"]) == (1.0, 4.0, 5)


def test_speed_ups_are_against_the_fastest_dense_engine_of_the_same_setting() -> None:
    def row(model: str, engine: str, batch: int, milliseconds: float) -> dict[str, Any]:
        rate = 1000 / milliseconds
        return {
            "model": model, "engine": engine, "hash": engine, "batch": batch, "threads": 1,
            "latency_ms": milliseconds, "tokens_per_second": rate,
        }  # fmt: skip

    rows = [row("d", "slow", 1, 40.0), row("d", "fast", 1, 20.0), row("m", "fast", 1, 5.0), row("m", "fast", 8, 5.0)]
    compare_rows(rows, "d")
    assert [item["times_faster"] for item in rows] == [0.5, 1.0, 4.0, None]
    assert rows[2]["times_faster_per_token"] == pytest.approx(4.0)
    assert rows[2]["compared_with"] == {"engine": "fast", "hash": "fast"} and rows[3]["compared_with"] is None
