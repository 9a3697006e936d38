"""The teacher of a train stage: found before the run begins, loaded when its stage does."""

from __future__ import annotations

from typing import Any

from secateur.anatomy.depth import depths
from secateur.anatomy.stored import read_config
from secateur.artefact import Artefact, find_artefact
from secateur.errors import CheckpointError, RecipeError
from secateur.layer_maps import beyond_teacher, lists_of
from secateur.recipe.schema import Recipe, Train
from secateur.retrain.distil import Distiller, Parts
from secateur.state import Live, Run
from secateur.tasks.labels import labels_of
from secateur.tasks.reading import is_classifier


def check_teachers(recipe: Recipe) -> None:
    """See that every teacher that no stage makes is there, before work is put into the stages.

    Args:
        recipe: with whole paths.

    Raises:
        CheckpointError: one is missing, damaged, or gives no logits.
        RecipeError: a map names layers that one lacks; all of them.
    """
    made, faults = {"given", *(stage.name for stage in recipe.stages)}, list[str]()
    for stage in recipe.stages:
        training = stage.training
        if training and training.teacher is not None and training.teacher not in made:
            found = _find(training.teacher)
            if lists_of(stage) and found.kind == "transformers":  # a packed one is looked at when it is unpacked
                config, _ = read_config(found.path, trust_remote_code=recipe.trust_remote_code)
                faults += beyond_teacher(stage, depths(config))
    if faults:
        raise RecipeError(faults, "The recipe does not fit its teachers:")


def load_distiller(state: Run, live: Live, settings: Train) -> tuple[Distiller | None, dict[str, Any]]:
    """Load a train stage's teacher.

    Args:
        state: the run.
        live: the student.
        settings: the stage.

    Returns:
        What adds the teacher to the loss, and JSON-ready facts about it; None and no facts for a stage without one.

    Raises:
        CheckpointError: it is missing or damaged, gives no logits, or has another task, other classes or
            another tokenizer than the student.
    """
    parts = settings.distillation
    if settings.teacher is None or not (parts.logits or parts.hidden):  # pseudo-labels alone ask for no logits
        return None, {}
    path = state.folder.teacher(settings.teacher)
    teacher = _find(path)
    with teacher.opened(trust_remote_code=state.recipe.trust_remote_code) as (model, tokenizer):
        if is_classifier(model) != is_classifier(live.model):
            raise CheckpointError(f"{path}: this teacher is for another task. Name one of the student's.")
        if tokenizer.get_vocab() != live.tokenizer.get_vocab():
            raise CheckpointError(
                f"{path}: this teacher has another tokenizer, so its answers are about other tokens. Name a teacher "
                "with the student's; where rows of the table were cut, that is a stage after the cut."
            )
        if state.classes and labels_of(model.config) != state.classes.labels:
            raise CheckpointError(
                f"{path}: this teacher names other classes than the student, or in another order. Train one here."
            )
        distiller = Distiller(model, Parts(**parts.model_dump()))
    return distiller, {"teacher": {"model": settings.teacher, "hash": teacher.hash}}


def _find(path: str) -> Artefact:
    found = find_artefact(path)
    if found.kind not in ("transformers", "packed"):
        raise CheckpointError(
            f"{path}: is a {found.kind} export, which gives no logits to learn from. Name the model it was made of."
        )
    return found


__all__ = ["check_teachers", "load_distiller"]
