"""Fields of a recipe as the arguments of functions, where several verbs ask for the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from secateur.errors import SecateurError
from secateur.recipe.schema import Evaluate, Evaluation, Recipe
from secateur.tasks.encode import EncodedPairs, encode
from secateur.tasks.labels import encode_labelled, labels_of
from secateur.tasks.pairs import Pairs, load_pairs, pairs_from_rows


def load_split(recipe: Recipe, split: str, rows: Iterable[Mapping[str, Any]] | None = None) -> Pairs:
    """Read a split of a recipe's data.

    Args:
        recipe: its paths are whole.
        split: train, validation or test as the recipe maps them, or a split's own name.
        rows: rows of your own instead.

    Returns:
        The rows, prefix applied; sources of two texts where the task reads two columns.

    Raises:
        DataError: no such data, split or column, or a row that is not text.
    """
    task = recipe.task
    columns: dict[str, Any] = {"source": task.source, "target": task.target, "prefix": task.prefix}
    columns |= {"labels": task.kind == "classification", "skip_empty": task.data.skip_empty}
    if rows is not None:
        return pairs_from_rows(rows, **columns, where=split)
    named = getattr(task.data, split) if split in ("train", "validation", "test") else split
    return load_pairs(task.data.path, named, name=task.data.name, **columns)


def encode_rows(recipe: Recipe, pairs: Pairs, tokenizer: Any, model: Any) -> EncodedPairs:
    """Turn texts of a recipe's task into token ids, cut to the task's lengths.

    Args:
        recipe: says the lengths; for classification the model's configuration says the classes.
        pairs: the texts.
        tokenizer: the model's.
        model: live; its table says which ids there are.

    Returns:
        The rows.

    Raises:
        DataError: the tokenizer gives ids that the model has no row for, or a class is unknown to the model.
    """
    limits = encoding_limits(recipe, model)
    if recipe.task.kind == "classification":
        return encode_labelled(pairs, tokenizer, labels_of(model.config), **limits)
    return encode(pairs, tokenizer, **limits)


def encoding_limits(recipe: Recipe, model: Any) -> dict[str, Any]:
    """Give the limits of what a model reads, and in seq2seq writes, as arguments of what encodes it."""
    limits = {"max_source_tokens": recipe.task.max_source_tokens}
    if recipe.task.kind == "seq2seq":
        limits["max_target_tokens"] = needed(recipe.task.max_target_tokens)
    return limits | {"vocab_size": model.get_input_embeddings().num_embeddings}


def refuse_classes(recipe: Recipe | None, what: str) -> None:
    """Refuse a verb that is about texts that are written.

    Args:
        recipe: the task; None where none is known.
        what: the verb, and why it cannot be done with classes.

    Raises:
        SecateurError: the task is classification.

    >>> refuse_classes(None, "sweep: nothing is generated")
    """
    if recipe is not None and recipe.task.kind == "classification":
        raise SecateurError(f"{what}, and this recipe's task.kind is classification. Use `secateur evaluate`.")


def needed(limit: int | None) -> int:
    """Give a limit that seq2seq must give, as the recipe's check has seen."""
    assert limit is not None
    return limit


def evaluation_settings(base: Evaluation, changes: Evaluate | None) -> Evaluation:
    """Say how a stage is measured: as the recipe's evaluation says, but for what the stage says itself."""
    given = changes.model_dump(exclude_none=True) if changes else {}
    return base.model_copy(update=given)


def evaluation_facts(recipe: Recipe, settings: Evaluation) -> dict[str, Any]:
    """Say how something is measured, for the record: metrics and split apart, and nothing of a task's other kind."""
    idle = {"max_new_tokens", "num_beams"} if recipe.task.kind == "classification" else set[str]()
    return settings.model_dump(mode="json", exclude={"metrics", "split", *idle})


def evaluation_arguments(recipe: Recipe, settings: Evaluation) -> dict[str, Any]:
    """Give what `evaluate_model` is to know of a recipe, but for the metrics, to which callers add their own.

    Args:
        recipe: says the task and the seed.
        settings: the recipe's evaluation, or a stage's.

    Returns:
        max_source_tokens, batch_size, prefix, seed; for seq2seq also max_new_tokens and num_beams.
    """
    task = recipe.task
    written = {"max_new_tokens": settings.max_new_tokens, "num_beams": settings.num_beams}
    return {
        "max_source_tokens": task.max_source_tokens,
        **(written if task.kind == "seq2seq" else {}),
        "batch_size": settings.batch_size,
        "prefix": task.prefix,
        "seed": recipe.seed,
    }
