"""The rows that a recipe calls train, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from secateur.recipe.schema import Recipe
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
