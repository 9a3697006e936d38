"""The teacher of a train stage: found before the run begins, loaded when its stage does."""

from __future__ import annotations

from typing import Any

from secateur.anatomy.depth import depths
from secateur.anatomy.stored import read_config
from secateur.artefact import Artefact, find_artefact
from secateur.errors import CheckpointError, RecipeError
from secateur.fields import encode_rows
from secateur.layer_maps import beyond_teacher, lists_of
from secateur.recipe.schema import Recipe, Train
from secateur.retrain.distil import Distiller, Parts
from secateur.state import Live, Run
from secateur.tasks.encode import EncodedPairs
from secateur.tasks.labels import labels_of
from secateur.tasks.pairs import Pairs
from secateur.tasks.reading import is_classifier, reads_token_types


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


def load_distiller(
    state: Run, live: Live, settings: Train, pairs: Pairs, rows: EncodedPairs
) -> tuple[Distiller | None, EncodedPairs, dict[str, Any]]:
    """Load a train stage's teacher.

    Args:
        state: the run.
        live: the student.
        settings: the stage.
        pairs: what is trained on.
        rows: the same in the student's token ids.

    Returns:
        What adds the teacher to the loss, the rows with all that the teacher reads of them, and JSON-ready facts about
        it; None, the same rows and no facts for a stage without one.

    Raises:
        CheckpointError: it is missing or damaged, gives no logits, has another task, other classes or another
            tokenizer than the student, or is to know of which of two texts a token is, and the student must not.
    """
    parts = settings.distillation
    if settings.teacher is None or not (parts.logits or parts.hidden):  # pseudo-labels alone ask for no logits
        return None, rows, {}
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
        if pairs.has_two_texts and rows.token_type_ids is None and reads_token_types(model):
            rows = _with_token_types(state.recipe, live, pairs, rows, tokenizer, path)
        distiller = Distiller(model, Parts(**parts.model_dump()))
    return distiller, rows, {"teacher": {"model": settings.teacher, "hash": teacher.hash}}


def _with_token_types(
    recipe: Recipe, live: Live, pairs: Pairs, rows: EncodedPairs, tokenizer: Any, path: str
) -> EncodedPairs:
    """Encode two texts a row as the teacher's tokenizer does, where that tells more: BERT's does, DistilBERT's not."""
    theirs = encode_rows(recipe, pairs, tokenizer, live.model)
    if theirs.token_type_ids is None:
        return rows
    if theirs.input_ids != rows.input_ids or reads_token_types(live.model):
        raise CheckpointError(
            f"{path}: this teacher's tokenizer reads two texts a row otherwise than the student's. Put the teacher's "
            "tokenizer into the student's folder."
        )
    return theirs


def _find(path: str) -> Artefact:
    found = find_artefact(path)
    if found.kind not in ("transformers", "packed"):
        raise CheckpointError(
            f"{path}: is a {found.kind} export, which gives no logits to learn from. Name the model it was made of."
        )
    return found


__all__ = ["check_teachers", "load_distiller"]
