"""What all searches do alike: they claim a folder, take over a recipe's training, and try recipes by short runs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from secateur.artifacts.claim import differing_keys, read_claim, refuse_differing
from secateur.artifacts.manifest import is_run, read_manifest
from secateur.errors import CheckpointError, RunInterrupted, SecateurError
from secateur.evaluation.metrics import METRICS
from secateur.fields import load_split
from secateur.files import write_json
from secateur.pipeline import run
from secateur.processes import pick_device
from secateur.recipe.load import load_recipe
from secateur.recipe.open import RECIPE, open_recipe
from secateur.recipe.schema import Calibration, Recipe, Train
from secateur.report.table import directed
from secateur.reporter import Reporter
from secateur.run_folder import WORK
from secateur.search.ray_trials import OnRay
from secateur.search.trials import JOURNAL

SEARCH = "search.json"
FORMAT = "secateur-search"
LATENCY = "latency_ms"  # what only a search for milliseconds is asked
_NO_DIRECTION = "evaluation.metrics: none has a direction that trials could be compared by. Add rouge."

Proposal = TypeVar("Proposal")


def claim_search(folder: Path, about: Mapping[str, Any], budget: Mapping[str, Any], *, trials: int) -> None:
    """Refuse a folder that is not this search's; write what it is into a new one.

    Args:
        folder: the search's.
        about: what makes it this search and no other; what an earlier version did not write down is not compared.
        budget: what may change as long as no trials have been made.
        trials: how many are asked for; 0 would write over what trials have refined.

    Raises:
        CheckpointError: the folder is foreign, or holds another search or one of the other kind, or trials for another
            budget, or trials where none are asked for.
    """
    there, mine = read_claim(folder, SEARCH, format=FORMAT, what="search"), {**about, **budget}
    if there is not None:
        if (LATENCY in there) != (LATENCY in mine):
            told = "milliseconds" if LATENCY in there else "sparsities"
            raise CheckpointError(f"{folder}: holds a search for {told}. Choose another --out.")
        if "budget" in there:
            there = {"by": "loss", **there}  # what an earlier version spent
        fixed = mine if (folder / JOURNAL).exists() else about
        refuse_differing(folder, differing_keys(there, mine, [key for key in fixed if key in there]), what="search")
    if not trials and (folder / JOURNAL).exists():
        raise CheckpointError(
            f"{folder}: holds a recipe that short runs have refined. Say --trials again, or choose another --out."
        )
    if there is None or differing_keys(there, mine, list(mine)):
        write_json(folder / SEARCH, {"format": FORMAT, "version": 1, **mine})


def retraining_of(recipe: Recipe, epochs: float) -> Train:
    """Take over how the recipe trains, or choose something that suits most fine-tuned models.

    Args:
        recipe: its first training says how.
        epochs: of the retraining; where they are fewer than the recipe's, its warm-up is shorter by as much.

    Returns:
        The training, without what acts only on a model from scratch.
    """
    found = next((stage.training for stage in recipe.stages if stage.training), None)
    if found is None:
        found = Train(epochs=1.0, learning_rate=1.0e-4, batch_size=16, warmup_steps=100)
    warmup = round(found.warmup_steps * min(1.0, epochs / found.epochs))
    changes = {"epochs": epochs, "warmup_steps": warmup, "denoising": None, "rewind": None, "weights": "fp32"}
    return found.model_copy(update=changes)


def check_amounts(**amounts: float) -> None:
    """Refuse what would be no search.

    Args:
        **amounts: of a search's options by their names; of `trials` there may be 0.

    Raises:
        SecateurError: one is not above 0, or no number.

    >>> check_amounts(trials=0, epochs=0.5)
    """
    for name, amount in amounts.items():
        if not (amount >= 0 if name == "trials" else 0 < amount < math.inf):
            least = "at least 0" if name == "trials" else "above 0"
            raise SecateurError(f"{name}: must be {least}, and is {amount:g}.")


def calibration_of(recipe: Recipe) -> Calibration:
    """Take over which rows the recipe's first pruning asks, or the schema's own choice."""
    return next((stage.prune.calibration for stage in recipe.stages if stage.prune), Calibration())


def direction_of(recipe: Recipe) -> bool:
    """Say whether the recipe's main metric is better when it is higher.

    Args:
        recipe: says which metrics there are.

    Returns:
        The direction of the first that has one.

    Raises:
        SecateurError: none has.
    """
    for name in recipe.evaluation.metrics:
        if (direction := METRICS[name].higher_is_better) is not None:
            return direction
    raise SecateurError(_NO_DIRECTION)


def trials_about(base: Recipe, train: Train, model_hash: str | None) -> dict[str, Any]:
    """Say what makes the figures of trials comparable.

    Args:
        base: says task, data, evaluation, calibration and seed.
        train: of each trial.
        model_hash: of the dense model, where it is known.

    Returns:
        JSON-ready.

    Raises:
        DataError: rows cannot be read.
    """
    parts = {
        "task": base.task, "evaluation": base.evaluation, "train": train, "calibration": calibration_of(base)
    }  # fmt: skip
    return {name: part.model_dump(mode="json") for name, part in parts.items()} | {
        "seed": base.seed,
        "hash": model_hash,
        "data_hashes": [load_split(base, split).fingerprint() for split in ("train", base.evaluation.split)],
    }


@dataclass(frozen=True)
class ShortRuns:
    """Trials of a search: each runs a recipe in a folder of its own, which keeps its manifest and no weights.

    One that was stopped, or died with its process, keeps what it has done, and goes on from there.

    Attributes:
        folder: the search's.
        num_trials: how many in all.
        device: auto, cpu, cuda or mps.
        ray_threads: CPU threads of each, for Ray Tune; None: this process runs them one after the other.
        on_trial: is told (trial's number, trials in all).
        should_stop: asked at every step; not under Ray.
    """

    folder: Path
    num_trials: int
    device: str = "auto"
    ray_threads: int | None = None
    on_trial: Callable[[int, int], None] | None = None
    should_stop: Callable[[], bool] | None = None

    @property
    def ray(self) -> OnRay | None:
        """How Ray Tune does the trials, if it does."""
        if self.ray_threads is None:
            return None
        gpu = {"gpu": 1.0} if pick_device(self.device) == "cuda" else {}
        tell, total = self.on_trial, self.num_trials
        return OnRay({"cpu": float(self.ray_threads), **gpu}, (lambda number: tell(number, total)) if tell else None)

    def trial(self, recipe_for: Callable[[Proposal], Recipe]) -> Callable[[int, Proposal], float]:
        """Make what runs a trial.

        Args:
            recipe_for: what is proposed -> a recipe.

        Returns:
            A function of (number, what is proposed): the last value of the recipe's main metric.
        """
        # Under Ray the function is sent to other processes: it takes nothing along that belongs to this one.
        here = self.ray_threads is None
        on_trial, should_stop = (self.on_trial, self.should_stop) if here else (None, None)
        folder, device, total, threads = self.folder, self.device, self.num_trials, self.ray_threads

        def run_trial(number: int, proposal: Proposal) -> float:
            if on_trial:
                on_trial(number, total)
            if threads is not None:
                import torch

                torch.set_num_threads(threads)
            place, recipe = _place(folder, number), recipe_for(proposal)
            options: dict[str, Any] = {"device": device, "reporter": Reporter(), "should_stop": should_stop}
            try:
                manifest = _go_on(recipe, place, options) or run(recipe, place, overwrite=True, **options).manifest
            except (RunInterrupted, CheckpointError):  # it is gone on with
                raise
            except SecateurError:
                _drop_weights(place)
                raise
            figure = _main(manifest)[1]
            _drop_weights(place)
            return figure

        return run_trial

    def metric(self, number: int) -> str:
        """Name the figure of a trial."""
        return _main(read_manifest(_place(self.folder, number)))[0]


def _go_on(recipe: Recipe, place: Path, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Go on with a run of the same recipe, if one was begun there; give its manifest."""
    if not is_run(place) or load_recipe(place / RECIPE) != open_recipe(recipe):
        return None
    manifest = read_manifest(place)
    if manifest["status"] == "complete":  # the process died before the journal knew, its weights may be gone
        return manifest
    return run(recipe, place, resume=True, **options).manifest


def _drop_weights(place: Path) -> None:
    for stage in (*place.glob("[0-9]*"), place):
        for name in ("model", WORK):
            shutil.rmtree(stage / name, ignore_errors=True)


def _place(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:03d}"


def _main(manifest: Mapping[str, Any]) -> tuple[str, float]:
    """Find the name and the value of a run's last main figure."""
    figures = manifest["stages"][-1]["metrics"]
    if (name := directed(figures)) is None:
        raise SecateurError(_NO_DIRECTION)
    return name, figures[name]["value"]


__all__ = [
    "FORMAT",
    "LATENCY",
    "RECIPE",
    "SEARCH",
    "ShortRuns",
    "calibration_of",
    "check_amounts",
    "claim_search",
    "direction_of",
    "retraining_of",
    "trials_about",
]
