"""The table says what is missing, and the picture needs no quality."""

from __future__ import annotations

from pathlib import Path

from secateur.report.bench import draw, text, write_beside, write_report
from secateur.report.drawing import new_figure

ROW = {
    "model": "m", "engine": "hf-fp32", "hash": "0123456789abcdef", "num_bytes": 2_000_000, "batch": 1, "threads": 1,
    "latency_ms": 9.0, "latency_p90_ms": 9.5, "first_token_ms": 2.0, "ms_per_token": None, "tokens_per_second": 80.0,
    "tokens_per_text": 1.0, "peak_memory_mib": None, "metrics": {}, "times_faster": 1.0, "times_faster_per_token": 1.0,
}  # fmt: skip


def test_table_and_picture(tmp_path: Path) -> None:
    skipped = [{"model": "m", "engine": "onnx-int8", "reason": "not installed."}]
    content = {
        "models": ["m"], "dense": "m", "inputs": "5 random tokens", "new_tokens": 3, "exactly": True,
        "repeats": 1, "rows": [ROW], "skipped": skipped, "environment": {"torch": "2"},
    }  # fmt: skip
    write_report(content, tmp_path)
    told = (tmp_path / "bench.md").read_text()
    assert "0123456789ab" in told and "onnx-int8: not installed." in told
    assert "exactly 3 new tokens" in told and "| not measured |" in told
    assert "at most 3 new tokens" in text({**content, "exactly": False})
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    figure = {"value": 6.0, "low": 4.0, "high": 8.0, "unit": "%", "higher_is_better": False}
    measured = {**content, "models": ["m", "none of whose engines ran"], "rows": [{**ROW, "metrics": {"per": figure}}]}
    assert draw(measured, tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_labels_of_marks_that_are_close_do_not_meet() -> None:
    figure = new_figure(8, 5)
    axes = figure.subplots()
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    write_beside(axes, [(50 + place / 4, 50 + place / 2, "onnx-int8", "black") for place in range(4)])
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.texts]
    assert len(boxes) == 4
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
