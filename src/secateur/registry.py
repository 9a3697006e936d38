"""Look a name up in a table, or say which names there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from secateur.errors import SecateurError

Value = TypeVar("Value")


def suggest(name: str, names: Iterable[str]) -> str:
    """Say which of the names was probably meant.

    Args:
        name: what was written.
        names: what could have been written.

    Returns:
        `Did you mean "x"? ` (with a space at its end), or an empty string when nothing is near.

    >>> suggest("magnitud", ["magnitude", "random"])
    'Did you mean "magnitude"? '
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f'Did you mean "{near[0]}"? ' if near else ""


def choose(table: Mapping[str, Value], name: str, where: str) -> Value:
    """Look a name up in one of our tables.

    Args:
        table: name -> value.
        name: the wanted name.
        where: what the name stands for, for the message ("score", "metric").

    Returns:
        The table's value.

    Raises:
        SecateurError: there is no such name; the message lists the nearest and all.

    >>> choose({"magnitude": 1, "random": 2}, "random", "score")
    2
    """
    if name in table:
        return table[name]
    raise SecateurError(f"{where}: no {name!r}. {suggest(name, table)}There are: {', '.join(table)}.")
