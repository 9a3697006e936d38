"""Values of a recipe before their types are checked: what is of the wrong type is told elsewhere, and reads as nothing.

>>> mapping([1]), listing("ab"), number(True), word(3)
({}, (), None, None)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.recipe.schema import Part
from secateur.recipe.yaml_tree import Path

Finding = tuple[Path, str]  # where a fault is, and what is wrong


def mapping(value: Any) -> dict[str, Any]:
    """Read a block of keys."""
    return value if isinstance(value, dict) else {}


def listing(value: Any) -> Sequence[Any]:
    """Read a list."""
    return value if isinstance(value, (list, tuple)) else ()


def number(value: Any) -> float | None:
    """Read a number; true and false are none."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def word(value: Any) -> str | None:
    """Read a word."""
    return value if isinstance(value, str) else None


def is_given(values: Mapping[str, Any], key: str, part: type[Part]) -> bool:
    """Tell whether a key says something: a value that is the default is what a saved recipe holds, and says nothing."""
    return key in values and values[key] != part.model_fields[key].default


__all__ = ["Finding", "is_given", "listing", "mapping", "number", "word"]
