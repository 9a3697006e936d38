"""The teacher of a train stage: found before the run begins, loaded when its stage does."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from secateur.anatomy.depth import depths
from secateur.anatomy.stored import read_config
from secateur.artefact import Artefact, find_artefact, identity
from secateur.artifacts.loading import load_tokenizer
from secateur.errors import AnatomyError, CheckpointError, RecipeError
from secateur.fields import encode_rows
from secateur.files import read_json, write_json
from secateur.given import Classes, short_positions
from secateur.layer_maps import beyond_teacher
from secateur.recipe.schema import Recipe, Train
from secateur.retrain.distil import Distiller, Parts
from secateur.retrain.trainer import newest_checkpoint
from secateur.state import Live, Run
from secateur.tasks.encode import EncodedPairs
from secateur.tasks.labels import labels_of
from secateur.tasks.pairs import Pairs
from secateur.tasks.reading import is_classifier, reads_token_types

_OTHER_CLASSES = "this teacher names other classes than the student, or in another order. Train one here."
TEACHER = "teacher.json"  # in a stage's work folder: what began to teach it


def check_teachers(
    recipe: Recipe, tokenizer: Any, *, classes: Classes | None = None, done: Collection[int] = ()
) -> None:
    """See that every teacher that no stage makes is there and can teach, before work is put into the stages.

    A packed teacher, and one of a family that is not known here, is looked at when it is loaded.

    Args:
        recipe: with whole paths.
        tokenizer: of the given model.
        classes: of a classifier.
        done: numbers of the stages that have learned already, 1 for the first: nobody teaches them any more.

    Raises:
        CheckpointError: one is missing, damaged, or gives no logits.
        RecipeError: one is for another task, names other classes, has fewer positions than the texts have tokens,
            reads other tokens, or lacks layers that a map names; all of these faults.
    """
    made, faults, cut = {"given", *(stage.name for stage in recipe.stages)}, list[str](), False
    trust = recipe.trust_remote_code
    for index, stage in enumerate(recipe.stages, start=1):
        cut = cut or bool(stage.prune and any(group.unit == "vocab_row" for group in stage.prune.groups))
        training = stage.training
        if index in done or training is None or training.teacher is None or training.teacher in made:
            continue
        found = _find(training.teacher)
        if found.kind != "transformers":
            continue
        where = f"stages.{stage.name}.{'' if stage.train else 'prune.'}train.teacher: {training.teacher}"
        try:
            config, _ = read_config(found.path, trust_remote_code=trust)
        except AnatomyError:  # a family that is not pruned here may teach all the same; it is looked at when loaded
            continue
        if config.is_encoder_decoder != (recipe.task.kind == "seq2seq"):
            faults.append(f"{where}: is for another task. Name a teacher of the student's.")
            continue
        if classes and labels_of(config) != classes.labels:
            faults.append(f"{where}: {_OTHER_CLASSES}")
        faults += [f"{where}: {told}" for told in short_positions(recipe, config, evaluated=False)]
        faults += beyond_teacher(stage, depths(config))
        alike = cut or not _asks_tokens(training)  # after a cut of rows its tokenizer is compared when it is loaded
        if not alike and load_tokenizer(found.path, trust_remote_code=trust).get_vocab() != tokenizer.get_vocab():
            faults.append(
                f"{where}: has another tokenizer than the student, so its answers are about other tokens. Name one "
                "with the student's, or learn from its texts alone: pseudo_labels, with distillation: {logits: 0}."
            )
    if faults:
        raise RecipeError(faults, "The recipe does not fit its teachers:")


def _asks_tokens(settings: Train) -> bool:
    """Tell whether a training compares itself with its teacher token by token; pseudo-labels alone are texts."""
    return bool(settings.distillation.logits or settings.distillation.hidden)


def hold_teacher(state: Run, settings: Train, work: Path) -> None:
    """See that a training goes on with the teacher that it began with, before that teacher writes or is loaded.

    Args:
        state: the run.
        settings: of the training.
        work: its folder of checkpoints.

    Raises:
        CheckpointError: the teacher is missing or damaged, or became another one since.
    """
    if settings.teacher is None:
        return
    path, file = state.folder.teacher(settings.teacher), work / TEACHER
    about = identity(_find(path))
    if file.exists() and read_json(file) != about and newest_checkpoint(work) is not None:
        raise CheckpointError(
            f"{path}: not the teacher that this training began with. Bring that one back, start the run anew with "
            "--overwrite, or choose another --out."
        )
    write_json(file, about)


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
    if settings.teacher is None or not _asks_tokens(settings):
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
            raise CheckpointError(f"{path}: {_OTHER_CLASSES}")
        if pairs.has_two_texts and rows.token_type_ids is None and reads_token_types(model):
            rows = _with_token_types(state.recipe, live, pairs, rows, tokenizer, path)
        distiller = Distiller(model, Parts(**settings.distillation.model_dump()))
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


__all__ = ["check_teachers", "hold_teacher", "load_distiller"]
