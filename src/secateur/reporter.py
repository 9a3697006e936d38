"""What a run tells of itself while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secateur.planning import Plan
from secateur.recipe.schema import Recipe
from secateur.retrain.trainer import Progress


class Reporter:
    """Is told how a run goes; this one keeps silent. Override what you want to see."""

    def run_started(self, recipe: Recipe, folder: Path, plan: Plan) -> None:
        """The model is loaded and the plan holds."""

    def stage_started(self, index: int, num_stages: int, name: str, kind: str) -> None:
        """A stage begins; index 0 is the given model, which is only evaluated."""

    def stage_skipped(self, name: str) -> None:
        """A stage was already done, by the run that this one resumes."""

    def noted(self, note: str) -> None:
        """Something about the stage is worth knowing, in whole sentences."""

    def training(self, progress: Progress) -> None:
        """One step of training is done."""

    def labelling(self, done: int, total: int) -> None:
        """The teacher has written pseudo-labels for some rows."""

    def evaluating(self, done: int, total: int) -> None:
        """Some rows are evaluated."""

    def stage_finished(self, entry: Mapping[str, Any]) -> None:
        """A stage is on disk; `entry` is what the manifest says of it."""

    def run_finished(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """The run is complete."""
