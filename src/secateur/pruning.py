"""A prune stage on the live model: what its scores need to know, every group's masks, and the check of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from secateur.anatomy.roles import Weight
from secateur.anatomy.units import STRUCTURED
from secateur.errors import MaskError
from secateur.files import read_json, write_json
from secateur.interop.nni import Chosen
from secateur.masks.group import prune_group
from secateur.masks.hold import revived
from secateur.masks.mask import MaskSet, Mode
from secateur.masks.scores import needs
from secateur.masks.statistics import LEARNED, Statistics
from secateur.masks.tie import HEAD, table_of, untie
from secateur.masks.unit_scores import OF_OUTPUTS
from secateur.masks.units import unit_alive
from secateur.nni_stage import (
    choose_masks,
    chosen_by,
    comes_back,
    head_groups,
    learned_settings,
    statistics_for,
)
from secateur.plan_groups import group_sparsity, target_of
from secateur.recipe.schema import Calibration, Group, Prune
from secateur.retrain.movement import ScoreLearner
from secateur.shaping import gather, gather_evidence, make_up, prune_structured
from secateur.state import Live, Run

MASKS = "masks.safetensors"  # what a checkpoint calls the masks that held when it was written
GROUPS = "groups.json"  # and how much they had taken from each group


def asks_rows(group: Group) -> bool:
    """Tell whether a group's score has to read training rows.

    Args:
        group: of a prune stage.

    Returns:
        Whether it asks for gradients, activations or counts.

    Raises:
        MaskError: its score is a function of the caller's own, and there is none.
    """
    if group.unit in STRUCTURED:
        return group.score in ("taylor", "frequency", *OF_OUTPUTS)
    return bool(needs(group.score).difference(LEARNED))


def learns(group: Group) -> bool:
    """Tell whether a group's score is learned while its stage trains."""
    return group.unit not in STRUCTURED and not needs(group.score).isdisjoint(LEARNED)


def prune_live(state: Run, live: Live, settings: Prune) -> dict[str, Any]:
    """Choose what a prune stage removes at once, and lay the masks on the live model.

    Args:
        state: the run.
        live: the model; its masks are replaced by those that hold from now on.
        settings: the stage.

    Returns:
        JSON-ready facts: of each group, how much of it went.

    Raises:
        SecateurError: a group cannot be pruned so; several processes chose different masks.
    """
    chosen = _nni(live, settings)
    _settle_heads(live, _heads(settings, chosen))
    if chosen is not None:
        masks, groups = _choose_nni(state, live, settings, chosen, live.masks)
    else:
        masks, groups = _choose(state, live, settings.groups, settings.calibration, live.masks)
    _make_up(state, live, settings, masks)
    _lay(state, live, masks)
    return {"groups": groups}


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
        self.chosen = _nni(live, settings)
        _settle_heads(live, _heads(settings, self.chosen))
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
            gone = {path: before.masks[path] for path in masks if before.modes.get(path) == "hold"}
            self.live.lay(MaskSet({**before.masks, **masks}, {**before.modes, **modes}, before.owner))
            with torch.no_grad():  # taking a hold off gives removed weights back, where no process stopped since
                for path, mask in gone.items():
                    model.get_parameter(path).masked_fill_(~mask.to(model.get_parameter(path).device), 0.0)
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
            masks, self.groups = _choose_nni(
                self.state, self.live, self.settings, self.chosen, already, share=share, learned=learned
            )
        else:
            groups = [
                group.model_copy(update={"sparsity": self._sparsity(group, share)}) for group in self.settings.groups
            ]
            masks, self.groups = _choose(self.state, self.live, groups, self.settings.calibration, already, learned)
        if self._regrows and share < 1.0:  # what may come back keeps its value under a view
            modes: dict[str, Mode] = dict.fromkeys((path for path in self._paths() if path in masks), "view")
            masks = MaskSet(masks.masks, {**masks.modes, **modes}, masks.owner)
        if self.learner and share >= 1.0:
            self.learner.fold(self.live.model)
        _make_up(self.state, self.live, self.settings, masks)
        _lay(self.state, self.live, masks)
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
    if group.unit in STRUCTURED:
        return share * full  # what is gone before counts, and is never given back
    gone = _gone(group, live, before)
    return full if gone >= full or share >= 1.0 else gone + share * (full - gone)


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


def _choose(
    state: Run,
    live: Live,
    chosen: Sequence[Group],
    calibration: Calibration,
    already: MaskSet,
    learned: Mapping[str, Statistics] = MappingProxyType({}),
) -> tuple[MaskSet, list[dict[str, Any]]]:
    """Choose the masks of groups beside those that hold already; the model is not changed."""
    masks, facts = already, []
    evidence = gather_evidence(state, live, chosen, calibration)
    statistics = dict(_gather_statistics(state, live, chosen, calibration))
    statistics |= {path: {**statistics.get(path, {}), **found} for path, found in learned.items()}
    for group in chosen:
        if group.unit in STRUCTURED:
            found, modes = prune_structured(state, live, group, evidence, masks)
        else:
            masks = _inherited(live, group, masks)
            found, mode = _prune_one(state, live, group, masks, statistics)
            modes: dict[str, Mode] = dict.fromkeys(found, mode)
        # Each group finds what the ones before it removed; where groups overlap, both hold.
        masks = MaskSet({**masks.masks, **found}, {**masks.modes, **modes}, masks.owner)
        facts.append(
            {
                "role": group.role or group.unit,
                "num_weights": len(found),
                "num_removed": sum(int((~mask).sum()) for mask in found.values()),
                "num_elements": sum(mask.numel() for mask in found.values()),
                "sparsity": group_sparsity(group),
                "tie": group.tie,
            }
            | ({"unit": group.unit} if group.unit in STRUCTURED else {})
        )
    return masks, facts


def _nni(live: Live, settings: Prune) -> Chosen | None:
    """Find what NNI's config_list selects, where a stage has one."""
    return None if settings.nni_config_list is None else chosen_by(settings, live.anatomy, live.head)


def _heads(settings: Prune, chosen: Chosen | None) -> Sequence[Group]:
    """List the groups whose tie policy is to be settled."""
    return settings.groups if chosen is None else head_groups(settings, chosen)


def _choose_nni(
    state: Run,
    live: Live,
    settings: Prune,
    chosen: Chosen,
    already: MaskSet,
    *,
    share: float = 1.0,
    learned: Mapping[str, Statistics] = MappingProxyType({}),
) -> tuple[MaskSet, list[dict[str, Any]]]:
    """Choose the masks that NNI's config_list asks for, beside those that hold already."""
    for group in head_groups(settings, chosen):
        already = _inherited(live, group, already)
    wanted = statistics_for(settings, chosen, live.anatomy)
    statistics = {**gather(state, live, wanted, settings.calibration), **learned}
    return choose_masks(
        live.model,
        live.anatomy,
        settings,
        chosen,
        share=share,
        already=already,
        statistics=statistics,
        seed=state.recipe.seed,
    )


def _make_up(state: Run, live: Live, settings: Prune, masks: MaskSet) -> None:
    """Adjust what stays of layers that obs judged; a head that is a view of the table cannot be adjusted alone."""
    judged = {
        weight
        for group in settings.groups
        if group.score == "obs" and group.unit not in STRUCTURED
        for weight in target_of(group, live.anatomy, live.head).weights
    }
    held = {weight for weight in judged if masks.modes[weight.path] == "hold"}
    if not held:
        return
    paths = {weight.path for weight in held}
    others = {path: mask for path, mask in masks.masks.items() if path not in paths}
    kept = {path: live.masks.masks[path] for path in paths if path in live.masks}  # until it is their turn
    modes: dict[str, Mode] = {path: masks.modes[path] for path in {*others, *kept}}
    live.lay(MaskSet({**others, **kept}, modes, masks.owner))
    chosen = {weight: masks.masks[weight.path] for weight in sorted(held, key=lambda weight: weight.path)}
    make_up(state, live, chosen, settings.calibration)


def _lay(state: Run, live: Live, masks: MaskSet) -> None:
    """Lay masks on the live model, and check them."""
    live.lay(masks)
    if len(set(state.processes.gather(live.masks.digest()))) > 1:
        raise MaskError("The processes of this run chose different masks: their models differ. Please report this.")
    if back := revived(live.model, live.masks):
        raise MaskError(f"{next(iter(back))}: holds values where its mask removed them. Please report this.")


def _gather_statistics(
    state: Run, live: Live, groups: Sequence[Group], calibration: Calibration
) -> dict[str, Statistics]:
    """Find out what the scores of single weights need to know, once for all groups, in the first process."""
    wanted: dict[Weight, frozenset[str]] = {}
    for group in groups:
        if group.unit in STRUCTURED or not (names := needs(group.score).difference(LEARNED)):
            continue
        for weight in target_of(group, live.anatomy, live.head).weights:
            wanted[weight] = wanted.get(weight, frozenset()) | names
    return gather(state, live, wanted, calibration)


def _inherited(live: Live, group: Group, masks: MaskSet) -> MaskSet:
    """A head that sees the shared table has lost what the table had lost."""
    table = masks.masks.get(table_of(live.model))
    if group.tie != "view" or live.head != "view" or table is None:
        return masks
    head = table & masks.masks[HEAD] if HEAD in masks else table.clone()
    return MaskSet({**masks.masks, HEAD: head}, {**masks.modes, HEAD: "view"}, masks.owner)


def _settle_heads(live: Live, groups: Sequence[Group]) -> None:
    """Do what the groups' tie policies ask of the head: a copy of the table has lost what the table had lost."""
    for group in groups:
        if group.role not in ("lm_head", "embedding") or live.head == "untied" or not group.tie:
            continue
        live.head = "untied" if group.tie == "untie" else group.tie
        if group.tie == "untie":
            untie(live.model)
            if (table := live.masks.masks.get(table_of(live.model))) is not None:
                modes: dict[str, Mode] = {**live.masks.modes, HEAD: "hold"}
                live.lay(MaskSet({**live.masks.masks, HEAD: table.clone()}, modes, live.masks.owner))


def _prune_one(
    state: Run, live: Live, group: Group, already: MaskSet, statistics: Mapping[str, Statistics]
) -> tuple[dict[str, torch.Tensor], Mode]:
    target = target_of(group, live.anatomy, live.head)
    masks = prune_group(
        live.model,
        target.weights,
        already=already,
        sparsity=None if group.pattern else group.sparsity,
        score=group.score,
        scope=group.scope,
        unit=group.unit,
        block=group.block,
        pattern=group.pattern,
        max_sparsity=group.max_sparsity,
        min_keep=group.min_keep,
        seed=state.recipe.seed,
        statistics=statistics,
    )
    return masks, target.mode
