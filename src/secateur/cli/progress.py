"""What the verbs share that take a while: progress on screen, and the outcome as text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from secateur.console import ConsoleReporter
from secateur.files import OnBytes, silent


class CellProgress:
    """Tells which cell is at work.

    Args:
        reporter: writes it; nothing when the outcome alone is to be on screen.
        kind: what the cells belong to.
    """

    def __init__(self, reporter: ConsoleReporter | None, kind: str) -> None:
        self.reporter, self.kind = reporter, kind

    def on_cell(self, done: int, total: int, name: str) -> None:
        """Tell that so many cells are done and which one is next."""
        if self.reporter:
            self.reporter.stage_started(done + 1, total, name, self.kind)

    def on_trial(self, number: int, total: int) -> None:
        """Tell that a short run begins."""
        if self.reporter:
            # What was stopped and is done again leaves a gap in the numbers after it.
            self.reporter.stage_started(min(number + 1, total), total, f"trial {number}", "short run")

    @property
    def on_bytes(self) -> OnBytes:
        """What is told (what is being done, bytes done, bytes in all) of a folder that is worked through."""
        return self.reporter.reading if self.reporter else silent

    @property
    def on_batch(self) -> Callable[[int, int], None] | None:
        """What is told (rows done, rows in all) of the cell at work."""
        return self.reporter.predicting if self.reporter else None


@contextmanager
def cell_progress(kind: str, *, quiet: bool) -> Iterator[CellProgress]:
    """Show progress for as long as this lasts."""
    reporter = None if quiet else ConsoleReporter()
    try:
        yield CellProgress(reporter, kind)
    finally:
        if reporter:
            reporter.close()


def print_found(found: dict[str, Any], out: str, *, as_json: bool, show: Callable[[dict[str, Any], str], None]) -> None:
    """Print an outcome as JSON, or as its verb shows it."""
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(found, out)
