"""A map of one's own for distillation, checked against models of which only the number of layers is known."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.recipe.names import Stack
from secateur.recipe.schema import LayerLists, Stage
from secateur.retrain.distil import Lists, list_faults


def lists_of(stage: Stage) -> Lists | None:
    """Find the layers that a stage's training lists for its teacher's lessons; none where it lists none."""
    training = stage.training
    listed = training.distillation.map if training and training.teacher is not None else None
    return {"encoder": listed.encoder, "decoder": listed.decoder} if isinstance(listed, LayerLists) else None


def map_faults(stage: Stage, depths: Mapping[Stack, int], teacher_depths: Mapping[Stack, int]) -> list[str]:
    """Find where a stage's map does not fit its student and its teacher.

    Args:
        stage: any stage of a recipe.
        depths: stack -> number of layers of the student when the stage begins.
        teacher_depths: stack -> number of layers of the teacher; empty where it is not known yet.

    Returns:
        Faults by their place in the recipe.
    """
    lists = lists_of(stage)
    if lists is None:
        return []
    where = f"stages.{stage.name}.{'' if stage.train else 'prune.'}train.distillation.map."
    return [f"{where}{place}: {told}" for place, told in list_faults(lists, depths, teacher_depths)]


def beyond_teacher(stage: Stage, teacher_depths: Mapping[Stack, int]) -> list[str]:
    """Find where a stage's map names layers that its teacher lacks, whatever the student has.

    Args:
        stage: any stage of a recipe.
        teacher_depths: stack -> number of layers of the teacher.

    Returns:
        Faults by their place in the recipe.
    """
    lists = lists_of(stage) or {}
    return map_faults(stage, {stack: len(listed) for stack, listed in lists.items() if listed}, teacher_depths)


__all__ = ["beyond_teacher", "lists_of", "map_faults"]
