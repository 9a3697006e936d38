"""The model that a run begins with: whether it is for the task, and which classes its head tells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.fit import longest_text
from secateur.artifacts.loading import load_model, random_model
from secateur.errors import DataError, RecipeError
from secateur.masks.mask import MaskSet
from secateur.recipe.schema import Recipe
from secateur.run_folder import load_masked
from secateur.tasks.labels import labels_of

_HEADS = "ForSequenceClassification"  # how transformers' classes end whose checkpoints hold a head


@dataclass(frozen=True)
class Classes:
    """What a classifier tells apart.

    Args:
        labels: the classes, in the order of its logits.
        is_new: whether its head is made for them, with weights that know nothing yet.
    """

    labels: tuple[str, ...]
    is_new: bool

    def as_text(self) -> str:
        """Say it in a line."""
        if self.is_new:
            return f"a new head for {len(self.labels)} classes, which knows nothing before a training"
        return f"the model's own, for {len(self.labels)} classes"


def classes_of(recipe: Recipe, config: Any, raw: Mapping[str, Any], labels: Sequence[str] | None) -> Classes | None:
    """Say which classes a run's model will name.

    A model with a head keeps it where the head knows every class of the training rows; else it gets a new one.

    Args:
        recipe: whose model it is.
        config: the model's configuration.
        raw: the content of its config.json.
        labels: the classes of the training rows; None where those are not known.

    Returns:
        The classes; None in seq2seq.

    Raises:
        RecipeError: the model is for the other task, or too short for the recipe's texts.
        DataError: the classes are not known.
    """
    _check_fits(recipe, config)
    if recipe.task.kind == "seq2seq":
        return None
    if any(str(name).endswith(_HEADS) for name in raw.get("architectures") or []):
        own = labels_of(config)
        if labels is None or set(labels) <= set(own):
            return Classes(own, is_new=recipe.initialize == "random")
    if labels is None:
        raise DataError(
            f"{recipe.model}: has no head that names classes, and the training rows, which would say how many there "
            "are, cannot be read. Give data on this disk."
        )
    if len(labels) < 2:
        raise DataError(f"task.target: the training rows are all of the class {labels[0]!r}. Two are needed at least.")
    return Classes(tuple(labels), is_new=True)


def _check_fits(recipe: Recipe, config: Any) -> None:
    """Refuse a model that is for the other task, or that has fewer positions than the recipe's texts have tokens."""
    kind, task = config.model_type, recipe.task
    writes = bool(config.is_encoder_decoder)
    if writes != (task.kind == "seq2seq"):
        does, asked = ("writes texts", "seq2seq") if writes else ("names classes", "classification")
        raise RecipeError([f"task.kind: {task.kind} does not go with {recipe.model}: a {kind} {does}. Write {asked}."])
    if faults := short_positions(recipe, config):
        raise RecipeError(faults, "The recipe does not fit its model:")


def short_positions(recipe: Recipe, config: Any, *, evaluated: bool = True) -> list[str]:
    """List the lengths of a recipe for which a model has too few positions.

    Args:
        recipe: says the lengths.
        config: the model's.
        evaluated: whether the model is measured too, with outputs of the evaluation's length.

    Returns:
        One sentence a fault; none where it has no such limit.
    """
    room = longest_text(FAMILIES[config.model_type], config)
    lengths = {
        "task.max_source_tokens": recipe.task.max_source_tokens,
        "task.max_target_tokens": recipe.task.max_target_tokens,
        "evaluation.max_new_tokens": recipe.evaluation.max_new_tokens if evaluated else None,
    }
    return [
        f"{key}: {length} is more than this model has positions for ({room}). Lower it."
        for key, length in lengths.items()
        if room is not None and length is not None and length > room
    ]


def new_head_faults(recipe: Recipe, classes: Classes | None) -> list[str]:
    """List what a recipe asks of a head that knows nothing yet.

    Args:
        recipe: any.
        classes: its model's.

    Returns:
        One sentence a fault.
    """
    if (
        classes is None or not classes.is_new or recipe.initialize == "random"
    ):  # a random start is told by its own rules
        return []
    faults = []
    untrained = takewhile(lambda stage: stage.training is None, recipe.stages)
    if shown := next((stage for stage in untrained if not stage.changes_model), None):
        told = "the model gets a new head, which has nothing to show yet. Train it first."
        faults.append(f"stages.{shown.name}: {told}")
    elif all(stage.training is None for stage in recipe.stages):
        faults.append(
            f"stages: {recipe.model} gets a new head for {', '.join(classes.labels[:5])}, which no stage trains. Add a "
            "training, or name the classes of the rows as the model does."
        )
    faults += [
        f"stages.{stage.name}.train.teacher: given gets a new head, which knows nothing. Name a stage that is trained."
        for stage in recipe.stages
        if stage.training and stage.training.teacher == "given"
    ]
    return faults


def _load_given(recipe: Recipe, path: str, classes: Classes | None) -> Any:
    """Load a plain model, or start it at random; the same at every call."""
    labels = classes.labels if classes and classes.is_new else None
    start = random_model if recipe.initialize == "random" else load_model
    options: dict[str, Any] = {"seed": recipe.seed, "trust_remote_code": recipe.trust_remote_code, "labels": labels}
    return start(path, **options)


def load_start(recipe: Recipe, path: str, classes: Classes | None) -> tuple[Any, MaskSet | None, str | None]:
    """Load what a run begins with: a run's own live model with its masks where `model` names one, else a plain one.

    Args:
        recipe: says how.
        path: its model, resolved.
        classes: of its head; None in seq2seq.

    Returns:
        The model; the masks that lie on it and how its head stands to the table, None and None for a plain one.

    Raises:
        CheckpointError: there is no such model, or its files are damaged.
    """
    if recipe.initialize != "random" and not (classes and classes.is_new):
        started = load_masked(recipe.model, trust_remote_code=recipe.trust_remote_code)
        if started:  # with what a plain folder cannot say: which zeros are removed, and what a view masks
            return started
    return _load_given(recipe, path, classes), None, None


__all__ = ["Classes", "classes_of", "load_start", "new_head_faults"]
