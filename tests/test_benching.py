"""A bench times artefacts in turns, names each by its hash, and says why an engine was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secateur import benching
from secateur.benching import bench
from secateur.errors import SecateurError
from secateur.evaluation.engine import Generated
from secateur.exports.folder import ExportError
from toy import Toy

QUICK: dict[str, Any] = {"batches": [1, 2], "threads": [1], "repeats": 1, "num_texts": 2, "memory": False}


def test_rows_bytes_quality_and_hash_are_of_one_artefact(toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    engines = ["hf-fp32", "ct2-int8"]
    found = bench([str(toy.start)], toy.recipe(), out=out, engines=engines, quality=True, **QUICK)
    assert json.loads((out / "bench.json").read_text()) == found
    assert {(row["engine"], row["batch"]) for row in found["rows"]} == {(name, b) for name in engines for b in (1, 2)}
    for row in found["rows"]:
        assert min(row["latency_ms"], row["first_token_ms"], row["tokens_per_second"], row["num_bytes"]) > 0
        assert row["latency_ms"] <= row["latency_p90_ms"] and "per" in row["metrics"]
    assert len({row["hash"] for row in found["rows"]}) == 2
    for size in (1, 2):  # the baseline is the fastest dense engine, so no dense row beats it
        assert max(row["times_faster"] for row in found["rows"] if row["batch"] == size) == 1.0
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG") and "ct2-int8" in (out / "bench.md").read_text()
    again = bench([str(out / "exports" / "1-ct2-int8")], source_tokens=5, new_tokens=3, **QUICK)
    assert {row["engine"] for row in again["rows"]} == {"ct2-int8"}
    assert again["rows"][0]["hash"] in {row["hash"] for row in found["rows"]}


def test_a_skipped_engine_has_its_reason(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ExportError(["cannot hold it."])

    monkeypatch.setattr(benching, "export_model", refuse)
    found = bench([str(toy.start)], engines=["hf-bf16", "onnx-int8"], source_tokens=5, new_tokens=3, **QUICK)
    assert found["skipped"] == [{"model": str(toy.start), "engine": "onnx-int8", "reason": "cannot hold it."}]
    assert {row["engine"] for row in found["rows"]} == {"hf-bf16"}
    with pytest.raises(SecateurError, match=r"none of the engines.*cannot hold it"):
        bench([str(toy.start)], engines=["onnx-int8"], **QUICK)


def test_engines_take_turns_and_the_first_round_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []
    now = [0.0]

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def generate(self, rows: list[list[int]], *, max_new_tokens: int) -> list[Generated]:
            calls.append((self.name, rows[0][0], max_new_tokens))
            now[0] += max_new_tokens
            return [Generated([7] * max_new_tokens, truncated=True) for _ in rows]

    monkeypatch.setattr(benching, "_clock", lambda: now[0])
    inputs = {0: [[1], [2]], 1: [[1], [2]]}
    found = benching._rounds({0: Fake("a"), 1: Fake("b")}, inputs, 1, 2, 4)
    assert calls == [(name, text, n) for _ in range(3) for text in (1, 2) for name in "ab" for n in (1, 1, 4)]
    assert found == {key: [(4.0, 1.0, 4, 4)] * 4 for key in (0, 1)}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engines": ["tensorrt"]}, "no such engine: tensorrt"),
        ({"batches": [0]}, "batches: must be"),
        ({"dense": "other"}, "none of the models"),
        ({"quality": True}, "--recipe"),
    ],
)
def test_a_wrong_question_is_refused(toy: Toy, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SecateurError, match=told):
        bench([str(toy.start)], **{**QUICK, **options})
