"""What the screen shows fits it."""

from __future__ import annotations

import pytest
from rich.console import Console

from secateur import console
from secateur.artifacts.manifest import read_manifest
from toy import Unbroken


@pytest.mark.parametrize("width", [80, 200])
def test_the_summary_cuts_no_figure(
    unbroken: Unbroken, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(unbroken.folder)
    last = manifest["stages"][-1]
    for number in range(6):  # as many metrics as ROUGE and the course's make
        last["metrics"][f"measure_{number}"] = last["metrics"]["per"]
    monkeypatch.setattr(console, "out", Console(width=width))
    console.print_summary(manifest)
    told = capsys.readouterr().out
    assert "…" not in told
    assert all(f"measure_{number}" in told for number in range(6))
    assert max(map(len, told.splitlines())) <= width
