"""What a family of models is: rows that say which parameter has which place, and how they are spelt out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from secateur.errors import AnatomyError
from secateur.recipe.names import Role, Stack
from secateur.registry import suggest


@dataclass(frozen=True)
class Rule:
    """One row of a family: a parameter, or the same parameter in every stack and layer it occurs in.

    Attributes:
        path: the parameter's name; `{stack}` and `{layer}` stand for each stack and layer.
        role: what the parameter is for.
        part: which of its role's matrices it is: "q", "wo", "table" ...
        shape: one entry per dimension, a key of the family's `sizes`.
        stacks: the stacks it occurs in; empty when it belongs to none.
        first_layer_only: the parameter is made by layer 0 for its whole stack.
        when: (attribute, value) of the configuration that must hold for the row to count.
    """

    path: str
    role: Role
    part: str
    shape: tuple[str, ...]
    stacks: tuple[Stack, ...] = ()
    first_layer_only: bool = False
    when: tuple[str, Any] | None = None


@dataclass(frozen=True)
class Family:
    """A family of models that are built from the same parts.

    Attributes:
        model_type: what `config.model_type` says.
        model_class: the class of transformers that holds all the parameters.
        sizes: a dimension's name -> the configuration's attributes whose product it is.
        num_layers: stack -> the configuration's attribute that counts its layers.
        rules: the rows; together they claim every parameter once.
        head_scaled_when: the configuration's attribute that says whether the decoder's output is multiplied by
            d_model**-0.5 before lm_head; None: never.
    """

    model_type: str
    model_class: str
    sizes: Mapping[str, tuple[str, ...]]
    num_layers: Mapping[Stack, str]
    rules: tuple[Rule, ...]
    head_scaled_when: str | None = None


@dataclass(frozen=True)
class Expected:
    """A parameter that a configuration calls for; `shape` in elements, `sizes` the same in words."""

    path: str
    role: Role
    part: str
    stack: Stack | None
    layer: int | None
    shape: tuple[int, ...]
    sizes: tuple[str, ...]


def _places(family: Family, rule: Rule, config: Any) -> Iterator[tuple[Stack | None, int | None]]:
    """List the stacks and layers in which a rule's parameter occurs."""
    if rule.when is not None and getattr(config, rule.when[0]) != rule.when[1]:
        return
    for stack in rule.stacks or (None,):
        if stack is None or "{layer}" not in rule.path:
            yield stack, None
            continue
        num_layers = getattr(config, family.num_layers[stack])
        for layer in range(min(num_layers, 1) if rule.first_layer_only else num_layers):
            yield stack, layer


def expected(family: Family, config: Any) -> dict[str, Expected]:
    """Spell out every parameter that a configuration calls for.

    Args:
        family: the rules.
        config: any object with the attributes that the family names.

    Returns:
        Parameter name -> what is expected of it, in the order of the rules.

    Raises:
        AnatomyError: two rows claim one name; the family's file is wrong.

    >>> from types import SimpleNamespace
    >>> row = Rule("{stack}.{layer}.q", "self_attention", "q", ("wide", "deep"), stacks=("encoder",))
    >>> toy = Family("toy", "Toy", {"wide": ("heads", "d_kv"), "deep": ("d",)}, {"encoder": "n"}, (row,))
    >>> {path: item.shape for path, item in expected(toy, SimpleNamespace(heads=2, d_kv=3, d=4, n=2)).items()}
    {'encoder.0.q': (6, 4), 'encoder.1.q': (6, 4)}
    """
    found: dict[str, Expected] = {}
    faults = []
    for rule in family.rules:
        shape = tuple(prod(getattr(config, attribute) for attribute in family.sizes[size]) for size in rule.shape)
        for stack, layer in _places(family, rule, config):
            path = rule.path.format(stack=stack, layer=layer)
            if path in found:
                faults.append(f"{path}: claimed by two rows of the family. Each parameter needs exactly one.")
            found[path] = Expected(path, rule.role, rule.part, stack, layer, shape, rule.shape)
    if faults:
        raise AnatomyError(faults, f"The rules of family {family.model_type!r} contradict each other:")
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
        [f"{where}: no family {str(model_type)!r} is known. {near}Families here: {', '.join(families)}."]
    )
