"""Budgets: how many elements have to go, so that a model counts, stores or weighs no more than it may."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from secateur.errors import SecateurError

Kind = Literal["counted", "stored", "bytes"]
BY_ROLE = "roles"  # beside the kinds: every role loses what the recipe takes of it
LEAST = 0.005  # a sparsity below it is left out of a recipe
_TINY = 1e-4  # below it a logit would be moved by nothing
UNITS = {"counted": "counted ratio", "stored": "stored ratio", "bytes": "bytes of a packed file"}


def num_removed(
    kind: Kind,
    value: float,
    *,
    num_parameters: int,
    num_prunable: int,
    num_added: int = 0,
    bytes_per_value: float = 4.0,
) -> int:
    """Turn a budget into a number of elements.

    Args:
        kind: counted (the share of the dense parameters that no mask removes), stored (the share that is really
            stored), or bytes (of a packed file's values and masks before they are compressed: with fp32 values the
            file is about a sixth smaller; tokenizer and header are left out).
        value: a ratio above 0 and at most 1, or a number of bytes.
        num_parameters: of the dense model, shared tensors once.
        num_prunable: elements of the groups that may lose some; of each a packed file holds one bit.
        num_added: elements of a table that an untied head gets of its own: they are stored beside the dense ones.
        bytes_per_value: of a packed file: 4, 2 or 1.

    Returns:
        Elements that have to go, at least 0.

    Raises:
        SecateurError: the budget is out of range, or below what all groups together could give.

    >>> num_removed("counted", 0.25, num_parameters=1000, num_prunable=900)
    750
    >>> num_removed("bytes", 1100, num_parameters=1000, num_prunable=800, bytes_per_value=2)
    500
    """
    if kind != "bytes" and not 0 < value <= 1:
        raise SecateurError(f"{kind}: must be a share of the dense parameters, above 0 and at most 1, not {value:g}.")
    if kind == "bytes":
        live = (value - num_prunable / 8) / bytes_per_value
        count = math.ceil(num_parameters + num_added - live - 1e-9)
    else:
        count = math.ceil((1 - value) * num_parameters - 1e-6) + (num_added if kind == "stored" else 0)
    if count > num_prunable:
        least = num_parameters + (num_added if kind != "counted" else 0) - num_prunable
        told = least / num_parameters if kind != "bytes" else least * bytes_per_value + num_prunable / 8
        raise SecateurError(
            f"{kind}: {value:g} cannot be reached: the groups hold {num_prunable:,} of {num_parameters:,} parameters, "
            f"so even without them {told:,.4g} would be left."
        )
    return max(0, count)


def told_budget(budget: Sequence[Any]) -> str:
    """Say what a search was asked for.

    Args:
        budget: as search.json holds it: a kind and its value.

    Returns:
        Words that follow "for".

    >>> told_budget(["counted", 0.25]), told_budget(["roles", {"feed_forward": 10}])
    ('a counted ratio of 0.25', 'what each role loses in the recipe')
    """
    kind, value = budget
    return "what each role loses in the recipe" if kind == BY_ROLE else f"a {UNITS[kind]} of {value:g}"


def rounded_up(share: float, *, most: float) -> float:
    """Write a share with six digits, so that no less goes than asked.

    >>> rounded_up(0.1234561, most=0.9), rounded_up(2 / 3, most=2 / 3)
    (0.123457, 0.6666666666666666)
    """
    return min(most, math.ceil(share * 1e6 - 1e-6) / 1e6)


def num_gone(sparsities: Mapping[str, float], sizes: Mapping[str, Sequence[int]]) -> int:
    """Count what goes where every part of a group loses its share, rounded to whole elements.

    Args:
        sparsities: group -> share removed.
        sizes: group -> elements of each part that has a threshold of its own.

    Returns:
        Elements.

    >>> num_gone({"a": 0.5}, {"a": [9, 9]}), num_gone({"a": 0.5}, {"a": [18]})
    (8, 9)
    """
    return sum(round(sparsities[name] * size) for name, parts in sizes.items() for size in parts)


def settled(
    sparsities: Mapping[str, float], sizes: Mapping[str, Sequence[int]], count: int, *, most: Mapping[str, float]
) -> dict[str, float]:
    """Raise sparsities by as little as makes up for rounding, those of large groups first.

    Args:
        sparsities: group -> share removed; those below LEAST stay.
        sizes: as for `num_gone`.
        count: elements that are to go.
        most: group -> the highest sparsity.

    Returns:
        Group -> sparsity; so many elements go, if the groups can lose them.

    >>> settled({"a": 0.5}, {"a": [9, 9]}, 9, most={"a": 0.9})
    {'a': 0.555556}
    """
    chosen = dict(sparsities)
    for name in sorted(sizes, key=lambda name: sum(sizes[name]), reverse=True):
        while LEAST <= chosen[name] < most[name] and (missing := count - num_gone(chosen, sizes)) > 0:
            raised = chosen[name] + max(1e-6, missing / sum(sizes[name]))
            chosen[name] = rounded_up(raised, most=most[name])
    return chosen


def logit(share: float) -> float:
    """The logarithm of a share's odds.

    >>> logit(0.5)
    0.0
    """
    return math.log(share / (1 - share))


def shifted(
    sparsities: Mapping[str, float],
    sizes: Mapping[str, int],
    offsets: Mapping[str, float],
    *,
    most: float = 0.99,
    least: float = LEAST,
) -> dict[str, float]:
    """Move sparsities against each other, and keep what they remove in all.

    Args:
        sparsities: group -> share removed, 0 to below 1.
        sizes: group -> number of elements.
        offsets: group -> what is added to the logit of its sparsity; groups that are not named move with the rest.
        most: the highest sparsity.
        least: the lowest; groups that have less stay at that.

    Returns:
        Group -> sparsity; the removed elements sum up as before, to a millionth.

    >>> moved = shifted({"a": 0.5, "b": 0.5}, {"a": 100, "b": 100}, {"a": 1.0})
    >>> moved["a"] > 0.5 > moved["b"], round(moved["a"] + moved["b"], 4)
    (True, 1.0)
    """
    least, most = min(least, *sparsities.values()), max(most, *sparsities.values())
    total = sum(sparsities[name] * sizes[name] for name in sparsities)
    bases = {name: logit(min(max(value, _TINY), most)) for name, value in sparsities.items()}

    def at(shift: float) -> dict[str, float]:
        moved = {name: base + offsets.get(name, 0.0) + shift for name, base in bases.items()}
        return {name: min(most, max(least, 1 / (1 + math.exp(-value)))) for name, value in moved.items()}

    low, high = -30.0, 30.0
    for _ in range(80):
        middle = (low + high) / 2
        removed = sum(value * sizes[name] for name, value in at(middle).items())
        low, high = (middle, high) if removed < total else (low, middle)
    return {name: rounded_up(value, most=most) for name, value in at((low + high) / 2).items()}


def told_failures(trials: Mapping[str, Any]) -> list[str]:
    """Say how many trials failed, and why the last did: a line, or none.

    >>> told_failures({"failed": ["Trial 1: the loss is not finite."]})
    ['1 failed. Trial 1: the loss is not finite.']
    """
    failed = trials["failed"]
    return [f"{len(failed)} failed. {failed[-1].splitlines()[0]}"] if failed else []


__all__ = [
    "BY_ROLE", "LEAST", "Kind", "logit", "num_gone", "num_removed", "rounded_up", "settled", "shifted", "told_budget",
    "told_failures",
]  # fmt: skip
