"""A prune stage that goes further step by step while its model trains: paces, learned scores, what may come back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from secateur.anatomy.units import STRUCTURED
from secateur.files import read_json, write_json
from secateur.interop.nni import Chosen
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.statistics import Statistics
from secateur.masks.structure import alive_units
from secateur.masks.units import unit_alive
from secateur.nni_stage import comes_back, learned_settings
from secateur.plan_groups import group_sparsity, target_of
from secateur.pruning import (
    MASKS,
    choose,
    choose_from_config,
    lay,
    learns,
    make_up_for,
    nni_choice,
    settle_heads,
    tied_groups,
)
from secateur.recipe.schema import Group, Prune
from secateur.retrain.movement import ScoreLearner
from secateur.shaping import places_of
from secateur.state import Live, Run

GROUPS = "groups.json"  # what a checkpoint calls how much its masks had taken from each group


class GradualPruner:
    """Prunes a live model ever further while it is trained; see `retrain.schedule.Pruner`.

    Args:
        state: the run.
        live: the model; its masks are replaced at every step of the pruning.
        settings: the stage.

    Raises:
        SecateurError: a tie policy cannot act.
    """

    def __init__(self, state: Run, live: Live, settings: Prune) -> None:
        self.state, self.live, self.settings = state, live, settings
        self.chosen = nni_choice(live, settings)
        settle_heads(live, tied_groups(settings, self.chosen))
        self.before = live.masks
        self.groups: list[dict[str, Any]] = []
        self.learner = _learner(state, live, settings, self.chosen)

    @property
    def masks(self) -> MaskSet:
        """What holds now."""
        return self.live.masks

    @property
    def still(self) -> frozenset[str]:
        """Views whose removed entries keep their values; not a tied head, of whose table the embedding sees all."""
        if not self._regrows:
            return frozenset()
        model, masks = self.live.model, self.live.masks
        table = model.get_input_embeddings().weight
        views = (path for path in self._paths() if masks.modes.get(path) == "view")
        return frozenset(path for path in views if model.get_parameter(path) is not table)

    def begin(self) -> MaskSet:
        """Let scores be learned from the first step; their weights are seen through masks that keep everything yet."""
        if self.learner:
            model, before = self.live.model, self.before
            masks: dict[str, torch.Tensor] = {
                path: before.masks[path] if path in before else torch.ones(model.get_parameter(path).shape).bool()
                for path in self.learner.paths
            }
            modes: dict[str, Mode] = dict.fromkeys(masks, "view")
            self.live.lay(MaskSet({**before.masks, **masks}, {**before.modes, **modes}, before.owner))
            self._forget(masks)
            self.learner.connect(model)
        return self.live.masks

    def learn(self, pressure: float) -> None:
        """Train the scores, until the whole sparsity is reached."""
        if self.learner:
            self.learner.step(pressure)

    def prune(self, share: float) -> MaskSet:
        """Remove so much of what the stage removes in all.

        Args:
            share: 0 (nothing) to 1 (all of it).

        Returns:
            The masks that lie on the model from now on.
        """
        already = self.before if self._regrows else self.live.masks
        learned = self.learner.statistics() if self.learner else {}
        if self.chosen is not None:
            masks, self.groups = choose_from_config(
                self.state, self.live, self.settings, self.chosen, already, share=share, learned=learned
            )
            known: Mapping[str, Statistics] = {}
        else:
            groups = [
                group.model_copy(update={"sparsity": self._sparsity(group, share)}) for group in self.settings.groups
            ]
            calibration = self.settings.calibration
            masks, self.groups, known = choose(self.state, self.live, groups, calibration, already, learned)
        if self._regrows and share < 1.0:  # what may come back keeps its value under a view
            modes: dict[str, Mode] = dict.fromkeys((path for path in self._paths() if path in masks), "view")
            masks = MaskSet(masks.masks, {**masks.modes, **modes}, masks.owner)
        if self.learner and share >= 1.0:
            self.learner.fold(self.live.model)
        lay(self.state, self.live, make_up_for(self.state, self.live, self.settings, masks, known, already))
        if self._regrows:
            self._forget(self._paths())
        if share >= 1.0:
            self.learner = None  # what is chosen is chosen; the rest of the training works with it
        elif self.learner:
            self.learner.connect(self.live.model)
        return self.live.masks

    @property
    def _regrows(self) -> bool:
        return self.settings.schedule.regrow if self.chosen is None else comes_back(self.settings)

    def _paths(self) -> list[str]:
        """Name the tensors that the stage prunes."""
        if self.chosen is not None:
            return [target.path for target in self.chosen.targets]
        return [
            weight.path
            for group in self.settings.groups
            for weight in target_of(group, self.live.anatomy, self.live.head).weights
        ]

    def _forget(self, paths: Iterable[str]) -> None:
        """Zero what went before the stage: taking a hold off gives it back, where no process stopped in between."""
        model, before = self.live.model, self.before
        with torch.no_grad():
            for path in paths:
                if before.modes.get(path) == "hold":
                    parameter = model.get_parameter(path)
                    parameter.masked_fill_(~before.masks[path].to(parameter.device), 0.0)

    def save(self, checkpoint: Path) -> None:
        """Write the masks, what they took from each group, and the scores while they are learned."""
        self.live.masks.save(checkpoint / MASKS)
        write_json(checkpoint / GROUPS, self.groups)
        if self.learner:
            self.learner.save(checkpoint)

    def restore(self, checkpoint: Path) -> None:
        """Lay on the masks of a checkpoint, and take over its scores.

        Args:
            checkpoint: its folder.

        Raises:
            CheckpointError: masks or scores are missing or damaged.
        """
        self.live.lay(MaskSet.load(checkpoint / MASKS))
        self.groups = read_json(checkpoint / GROUPS) if (checkpoint / GROUPS).exists() else []
        if self.learner and self.learner.active(checkpoint):
            self.learner.load(checkpoint, self.live.model)
        else:
            self.learner = None

    def _sparsity(self, group: Group, share: float) -> float:
        """Say what a group has to reach now; under soft movement its scores decide, up to its whole sparsity."""
        if self.learner and group.score == "soft_movement" and share < 1.0:
            weights = target_of(group, self.live.anatomy, self.live.head).weights
            gone = _gone(group, self.live, self.before)
            below = self.learner.below([weight.path for weight in weights], self.before)
            return min(group_sparsity(group), gone + (1.0 - gone) * below)
        return _on_the_way(group, self.live, self.before, share)


def _learner(state: Run, live: Live, settings: Prune, chosen: Chosen | None) -> ScoreLearner | None:
    """Prepare the scores that a stage learns, if it learns any."""
    if chosen is not None:
        learned = learned_settings(settings, chosen)
        return ScoreLearner(**learned, processes=state.processes) if learned else None
    paths: dict[str, bool] = {  # path -> whether its score is pressed down
        weight.path: group.score == "soft_movement"
        for group in settings.groups
        if learns(group)
        for weight in target_of(group, live.anatomy, live.head).weights
    }
    if not paths:
        return None
    soft = [path for path, pressed in paths.items() if pressed]
    return ScoreLearner(paths, soft=soft, processes=state.processes, **settings.movement.model_dump())


def _on_the_way(group: Group, live: Live, before: MaskSet, share: float) -> float:
    """Say which sparsity a group has at a share of the way from where it stands before the stage."""
    full = group_sparsity(group)
    gone = _gone_units(group, live, before) if group.unit in STRUCTURED else _gone(group, live, before)
    return full if gone >= full or share >= 1.0 else gone + share * (full - gone)


def _gone_units(group: Group, live: Live, before: MaskSet) -> float:
    """Say which share of whole units is gone before the stage: the least of the places, which get one sparsity."""
    alive = [alive_units(place, before.masks) for place in places_of(live.anatomy, group)]
    return min((1.0 - int(units.count_nonzero()) / units.numel() for units in alive), default=0.0)


def _gone(group: Group, live: Live, before: MaskSet) -> float:
    """Say which share of a group's units is gone before the stage."""
    weights = target_of(group, live.anatomy, live.head).weights
    alive = [  # of each weight, its units, which may be rows or blocks: one is gone when nothing of it is left
        unit_alive(before.masks[path], group.unit, block=group.block, path=path)
        if (path := weight.path) in before
        else unit_alive(torch.ones(weight.shape, dtype=torch.bool), group.unit, block=group.block, path=path)
        for weight in weights
    ]
    return 1.0 - sum(int(units.count_nonzero()) for units in alive) / sum(units.numel() for units in alive)
