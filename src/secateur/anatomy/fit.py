"""Whether a configuration is one that a family's rules understand, and for how long a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.anatomy.family import Family, value
from secateur.errors import AnatomyError
from secateur.registry import suggest


def longest_text(family: Family, config: Any) -> int | None:
    """Tell how many tokens a model has positions for; None where any number goes.

    >>> from types import SimpleNamespace
    >>> toy = Family("toy", "Toy", {"positions": ("n",)}, {}, (), pad_shifts_positions=True)
    >>> longest_text(toy, SimpleNamespace(n=514, pad_token_id=1))
    512
    """
    if "positions" not in family.sizes:
        return None
    positions = value(config, family.sizes["positions"][0], None)
    return positions - (config.pad_token_id + 1 if family.pad_shifts_positions else 0)


def misfits(family: Family, config: Any) -> list[str]:
    """List what a configuration says that its family's rules do not understand.

    Args:
        family: the rules.
        config: a configuration of that family's model_type.

    Returns:
        One sentence each; none when it is understood.
    """
    found = []
    for only in family.only:
        told = getattr(config, only.attribute, None)
        if told is None if not only.values else told not in only.values:
            found.append(f"{only.attribute}: {told!r} is not understood here: {only.reason}")
    for attribute, other in family.mirrors.items():
        if getattr(config, attribute) != getattr(config, other):
            found.append(f"{attribute}: {getattr(config, attribute)} is not {other} ({getattr(config, other)}).")
    understood = (family.model_class, *family.starts)
    kinds = [name for name in getattr(config, "architectures", None) or () if name not in understood]
    if family.starts and kinds:
        found.append(
            f"architectures: {kinds[0]} is another kind of model; of this family {family.model_class} is understood."
        )
    return found


def unknown_family(model_type: object, families: Mapping[str, Family], *, where: str) -> AnatomyError:
    """Word the refusal of a model whose family is not in the table.

    Args:
        model_type: what its configuration says; None when it says nothing.
        families: the table.
        where: the file or class that it comes from.

    Returns:
        The error, to be raised.
    """
    if not model_type:
        return AnatomyError([f"{where}: names no model_type. Families here: {', '.join(families)}."])
    near = suggest(str(model_type), families)
    return AnatomyError(
        [
            f"{where}: no family {str(model_type)!r} is known. {near}Families here: {', '.join(families)}. Another is "
            "not read as if it were one of these; docs/add-a-family.md says how it is added."
        ]
    )
