"""Lottery tickets: what a pruning left starts again from the weights of an earlier time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from secateur.artifacts.checkpoint import load_live
from secateur.artifacts.manifest import resolve_model
from secateur.errors import CheckpointError
from secateur.files import read_json
from secateur.given import load_start
from secateur.recipe.schema import Recipe
from secateur.run_folder import LIVE
from secateur.state import Live, Run


def rewind(state: Run, live: Live, name: str) -> None:
    """Give a live model the weights of an earlier stage; its masks stay, and what they removed stays removed.

    Args:
        state: the run.
        live: the model; its weights are replaced.
        name: a stage that is done, or `given`: the model that the run started from, its random start included.

    Raises:
        CheckpointError: the stage's files are missing or damaged, or its shapes are others.

    Source: Frankle et al. 2020, arXiv:1912.05671 (rewinding); Frankle and Carbin 2019, arXiv:1803.03635.
    """
    source = dict(_earlier(state, name).named_parameters(remove_duplicate=False))
    for path, parameter in live.model.named_parameters():
        if path not in source or source[path].shape != parameter.shape:
            raise CheckpointError(f"rewind: {name}: {path} has another shape there. Name a stage after the cut.")
        with torch.no_grad():
            parameter.copy_(source[path])
    # Attached anew: the zeros are written again, and a detach would give these weights back, not the later ones.
    live.lay(live.masks)


def _earlier(state: Run, name: str) -> Any:
    recipe: Recipe = state.recipe
    if name != "given":
        place: Path = state.folder.stage(1 + [stage.name for stage in recipe.stages].index(name))
        return load_live(place, read_json(place / LIVE)["live"], trust_remote_code=recipe.trust_remote_code)[0]
    return load_start(recipe, resolve_model(recipe.model), state.classes)[0]


__all__ = ["rewind"]
