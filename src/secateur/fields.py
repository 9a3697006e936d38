"""Fields of a recipe as the arguments of functions, where several verbs ask for the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from secateur.recipe.schema import Evaluate, Evaluation, Recipe
from secateur.tasks.encode import EncodedPairs, encode
from secateur.tasks.pairs import Pairs, load_pairs, pairs_from_rows


def load_split(recipe: Recipe, split: str, rows: Iterable[Mapping[str, Any]] | None = None) -> Pairs:
    """Read a split of a recipe's data.

    Args:
        recipe: its paths are whole.
        split: train, validation or test as the recipe maps them, or a split's own name.
        rows: rows of your own instead.

    Returns:
        The pairs, prefix applied.

    Raises:
        DataError: no such data, split or column, or a row that is not text.
    """
    task = recipe.task
    columns = {"source": task.source, "target": task.target, "prefix": task.prefix}
    if rows is not None:
        return pairs_from_rows(rows, **columns, where=split)
    named = getattr(task.data, split) if split in ("train", "validation", "test") else split
    return load_pairs(task.data.path, named, name=task.data.name, **columns)


def encode_rows(recipe: Recipe, pairs: Pairs, tokenizer: Any, model: Any) -> EncodedPairs:
    """Turn texts of a recipe's task into token ids, cut to the task's lengths.

    Args:
        recipe: says the lengths.
        pairs: the texts.
        tokenizer: the model's.
        model: live; its table says which ids there are.

    Returns:
        The rows.

    Raises:
        DataError: the tokenizer gives ids that the model has no row for.
    """
    task = recipe.task
    return encode(
        pairs,
        tokenizer,
        max_source_tokens=task.max_source_tokens,
        max_target_tokens=task.max_target_tokens,
        vocab_size=model.get_input_embeddings().num_embeddings,
    )


def evaluation_settings(base: Evaluation, changes: Evaluate | None) -> Evaluation:
    """Say how a stage is measured: as the recipe's evaluation says, but for what the stage says itself."""
    given = changes.model_dump(exclude_none=True) if changes else {}
    return base.model_copy(update=given)


def evaluation_arguments(recipe: Recipe, settings: Evaluation) -> dict[str, Any]:
    """Give what `evaluate_model` is to know of a recipe, but for the metrics, to which callers add their own.

    Args:
        recipe: says the task and the seed.
        settings: the recipe's evaluation, or a stage's.

    Returns:
        max_source_tokens, max_new_tokens, num_beams, batch_size, prefix, seed.
    """
    return {
        "max_source_tokens": recipe.task.max_source_tokens,
        "max_new_tokens": settings.max_new_tokens,
        "num_beams": settings.num_beams,
        "batch_size": settings.batch_size,
        "prefix": recipe.task.prefix,
        "seed": recipe.seed,
    }
