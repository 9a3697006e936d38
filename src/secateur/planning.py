"""What a recipe would do to a model, told from config.json alone: nothing is loaded, no memory is taken."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.depth import depths_of
from secateur.anatomy.roles import Anatomy
from secateur.anatomy.shrink import Kept, is_ragged
from secateur.anatomy.stored import read_config
from secateur.errors import RecipeError, SecateurError
from secateur.files import read_json
from secateur.given import Classes, classes_of, new_head_faults
from secateur.layer_maps import map_faults
from secateur.masks.mask import MaskSet
from secateur.masks.tie import HEAD
from secateur.nni_stage import plan_nni, steps_of
from secateur.plan_groups import PlannedGroup, PlanState, head_policy, plan_cut, plan_prune
from secateur.recipe.schema import Recipe, Stage, Train
from secateur.retrain.schedule import plan_shares
from secateur.run_folder import LIVE, MASKS, stage_of
from secateur.tasks.labels import name_labels

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
OPTIMIZER_BYTES = {"adamw": 8, "adafactor": 1, "sgd": 4}  # per parameter; adafactor keeps rows and columns only


@dataclass(frozen=True)
class PlannedStage:
    """A stage and the counts after it; memory without activations, `steps` only where the rows are known."""

    name: str
    kind: str
    trains: bool
    groups: tuple[PlannedGroup, ...]
    counted_ratio: float
    stored_ratio_packed: float
    stored_ratio_plain: float
    num_parameters: int
    num_bytes: int
    steps: int | None
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """A whole plan.

    `disk_bytes` is the most that the run folder takes at any time, `head` tells a classifier's, and `notes` what is in
    doubt.
    """

    family: str
    dense_parameters: int
    stages: tuple[PlannedStage, ...]
    disk_bytes: int
    head: str | None = None
    notes: tuple[str, ...] = ()


def _steps(train: Train, rows: int | None) -> int | None:
    if rows is None or train.pseudo_labels is not None:  # as many rows as there are sources, not targets
        return None
    return math.ceil(train.epochs * math.ceil(math.ceil(rows / train.batch_size) / train.accumulation))


def schedule_faults(recipe: Recipe, rows: int, *, done: Collection[int] = ()) -> list[str]:
    """Find gradual prunings that their trainings have no room for, before the stages before them are done.

    Args:
        recipe: a valid recipe.
        rows: of the training split: a row for each target.
        done: numbers of stages that are done, 1 for the first.

    Returns:
        A message for each; a training on pseudo-labels, whose rows are not known yet, is passed over.
    """
    faults = []
    for index, stage in enumerate(recipe.stages, start=1):
        steps = _steps(stage.prune.train, rows) if stage.prune and stage.prune.train else None
        if stage.prune is None or steps is None or index in done:
            continue
        try:
            plan_shares(steps_of(stage.prune), steps)
        except SecateurError as error:
            faults.append(f"stages.{stage.name}.prune.{error}")
    return faults


def make_plan(
    recipe: Recipe, model: str, *, train_rows: int | None = None, labels: Sequence[str] | None = None
) -> Plan:
    """Plan a recipe.

    Args:
        recipe: a valid recipe.
        model: its model's folder or hub id, resolved.
        train_rows: rows of the training split, for the steps; None leaves them open.
        labels: the classes of those rows, in classification.

    Returns:
        Counts after every stage; exact wherever scores do not decide them.

    Raises:
        RecipeError: a group selects nothing, groups overlap, a tie policy is missing or cannot act, a unit does not
            fit; all faults of all stages at once.
        CheckpointError: the model's config.json cannot be read.
        DataError: a classifier's classes are not known.
    """
    config, raw = read_config(model, trust_remote_code=recipe.trust_remote_code)
    classes = classes_of(recipe, config, raw, labels)
    if classes:
        name_labels(config, classes.labels)
    place = stage_of(recipe.model) if recipe.initialize == "pretrained" else None
    masks = MaskSet.load(place / MASKS) if place else MaskSet.empty()
    if recipe.initialize == "random":
        raw = {}
    if place is None or not len(masks):
        return plan_stages(recipe, anatomy_of(meta_model(config, raw)), train_rows=train_rows, classes=classes)
    facts = read_json(place / LIVE)
    own_head = bool(facts["live"]["own_head"])  # a plain folder holds a masked view of the table as a head of its own
    anatomy = anatomy_of(meta_model(config, raw | {"tie_word_embeddings": not own_head}))
    return plan_stages(recipe, anatomy, train_rows=train_rows, masks=masks, head=facts["head"], classes=classes)


def plan_stages(
    recipe: Recipe,
    anatomy: Anatomy,
    *,
    train_rows: int | None = None,
    masks: MaskSet | None = None,
    head: str | None = None,
    classes: Classes | None = None,
) -> Plan:
    """Plan a recipe for a model whose anatomy is known.

    Args:
        recipe: see `make_plan`.
        anatomy: of the model as given.
        train_rows: see `make_plan`.
        masks: that lie on the given model already; None for none.
        head: how its head stands to the table; by default as the anatomy says.
        classes: of a classifier.

    Returns:
        See `make_plan`.

    Raises:
        RecipeError: see `make_plan`.
    """
    head = head or head_policy(anatomy)
    state = PlanState(anatomy, head, anatomy.num_parameters, Kept(anatomy), cut_ragged=is_ragged(anatomy))
    if masks:
        for path in masks.masks:
            state.remove(anatomy[path], masks.removed(path))
    stages, faults = [], new_head_faults(recipe, classes)
    faults += schedule_faults(recipe, train_rows) if train_rows is not None else []
    made = {"given": depths_of(anatomy)}  # what may teach, and how deep it is
    for stage in recipe.stages:
        groups: tuple[PlannedGroup, ...] = ()
        if stage.cut:
            faults += [f"stages.{stage.name}.cut: {fault}" for fault in plan_cut(stage.cut, state)]
        if stage.export and stage.export.to == "ctranslate2" and state.cut_ragged:
            faults.append(
                f"stages.{stage.name}.export: {stage.export.to} cannot hold a ragged model: its layers differ in "
                "width. Cut with width: uniform, or export to onnx."
            )
        if stage.prune:
            by_nni = stage.prune.nni_config_list is not None
            groups, found = plan_nni(stage.prune, state) if by_nni else plan_prune(stage.prune.groups, state)
            where, keys = f"stages.{stage.name}.prune.", ("groups.", "nni_config_list", "tie:")
            faults += [f"{where}{fault}" if fault.startswith(keys) else f"  {fault}" for fault in found]
        training = stage.training
        if training and training.teacher is not None:
            faults += map_faults(stage, depths_of(state.anatomy), made.get(training.teacher, {}))
        made[stage.name] = depths_of(state.anatomy)
        if training and training.weights != "fp32" and state.head == "view":
            rounding = f"stages.{stage.name}.{'' if stage.train else 'prune.'}train.weights: {training.weights}"
            faults.append(f"{rounding} cannot act under tie: view. Use fp32.")
        stages.append(_planned_stage(stage, groups, state, train_rows))
    if recipe.initialize == "random" and recipe.stages[0].kind == "evaluate":
        first = recipe.stages[0].name
        faults.append(f"stages.{first}: a model that starts at random has nothing to evaluate yet. Train it first.")
    if faults:
        raise RecipeError(faults, "The recipe does not fit its model:")
    head = classes.as_text() if classes else None
    return Plan(anatomy.family, anatomy.num_parameters, tuple(stages), _disk(recipe, stages), head)


def _planned_stage(
    stage: Stage,
    groups: tuple[PlannedGroup, ...],
    state: PlanState,
    train_rows: int | None,
) -> PlannedStage:
    train = stage.training
    live = sum(state.left(weight) for weight in state.tensors)
    # A plain folder stores a view as a table of its own: the product of the shared one and the mask.
    view = state.anatomy[HEAD] if state.head == "view" else None
    stored = state.num_parameters + (view.numel if view else 0)
    training = OPTIMIZER_BYTES[train.optimizer] + 8 if train else 4
    return PlannedStage(
        name=stage.name,
        kind=stage.kind,
        trains=train is not None,
        groups=groups,
        counted_ratio=state.num_counted / state.dense,
        stored_ratio_packed=live / state.dense,
        stored_ratio_plain=(live + (state.left(view) if view else 0)) / state.dense,
        num_parameters=stored,
        num_bytes=_num_bytes(stage, stored, live, masked=state.masks_anything),
        steps=_steps(train, train_rows) if train else None,
        memory_bytes=state.num_parameters * training,
    )


def _num_bytes(stage: Stage, stored: int, live: int, *, masked: bool) -> int:
    """Bytes of what a stage writes; of an export or packed file without scales, norms apart and compression."""
    if stage.export:
        return stored * BYTES["int8" if stage.export.int8 else "fp32"]
    if stage.pack:
        return live * BYTES[stage.pack.values] + (stored // 8 if masked else 0)
    return stored * BYTES[stage.training.weights if stage.training else "fp32"]


def _disk(recipe: Recipe, stages: Sequence[Any]) -> int:
    """The most bytes at one time: kept stages, the final model, and two of the trainer's checkpoints."""
    models = [stage.num_bytes for stage in stages if stage.kind != "evaluate"] or [0]  # an export or pack is smaller
    kept = sum(models) if recipe.keep == "all" else 2 * max(models)
    trainings = [stage for stage in stages if stage.trains]
    trainer = max((2 * (stage.memory_bytes - 4 * stage.num_parameters) for stage in trainings), default=0)
    return kept + max(models) + max(0, trainer)
