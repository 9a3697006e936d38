"""Which part of the schema a path in a recipe leads to."""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin

from secateur.recipe.schema import Part, Recipe
from secateur.recipe.yaml_tree import Path


def part_at(path: Path) -> type[Part] | None:
    """Find the part of a recipe that stands at a path.

    Args:
        path: keys and indexes from the top.

    Returns:
        The part's class; none where the path leads to a plain value, or nowhere.

    >>> part_at(("stages", 0, "prune", "groups", 3)).__name__
    'Group'
    >>> part_at(("seed",)) is None
    True
    """
    annotation: Any = Recipe
    for step in path:
        if annotation is None:
            return None
        annotation = item_of(annotation) if isinstance(step, int) else _field(annotation, step)
    return part_of(annotation)


def part_of(annotation: Any) -> type[Part] | None:
    """Take the part out of `Part`, `Part | None` and `Annotated[Part, ...]`.

    >>> part_of(Recipe | None).__name__
    'Recipe'
    """
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    found = [part_of(choice) for choice in choices_of(annotation)]
    return next((part for part in found if part), None)


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """Open a union or an annotation by one level.

    >>> choices_of(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return get_args(annotation)
    return get_args(annotation)[:1] if origin is Annotated else ()


def item_of(annotation: Any) -> Any:
    """Find what a tuple holds, also an optional or annotated one; none when it is no tuple.

    >>> item_of(tuple[str, ...] | None)
    <class 'str'>
    """
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    return next((item for item in map(item_of, choices_of(annotation)) if item is not None), None)


def _field(annotation: Any, key: str) -> Any:
    part = part_of(annotation)
    info = part.model_fields.get(key) if part else None
    return info.annotation if info else None
