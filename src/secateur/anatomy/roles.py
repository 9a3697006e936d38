"""The map of a model: every name of a parameter with its role, its place and the tensor it stands for."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

from secateur.anatomy.family import Dim
from secateur.errors import AnatomyError
from secateur.recipe.names import Role, Stack
from secateur.registry import suggest


@dataclass(frozen=True)
class Weight:
    """One name of a parameter.

    Attributes:
        path: the name, as `named_parameters` gives it.
        role: what the parameter is for.
        stack: the stack it is in; None for the shared table and the head.
        layer: its layer's index in the stack; None for what stands outside the layers.
        shape: of the tensor, in elements.
        storage: the first name of the tensor it is; equal to `path` for the name that owns it.
        part: which of its role's matrices: q k v o, wi wi_0 wi_1 wo, table, head, norm, bias ...; the vector that is
            added to what a matrix gives is `q_bias` and so on.
        dims: what its dimensions are made of, one each.
    """

    path: str
    role: Role
    stack: Stack | None
    layer: int | None
    shape: tuple[int, ...]
    storage: str
    part: str
    dims: tuple[Dim, ...] = ()

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_addend(self) -> bool:
        """Whether it is the bias of a matrix or norm: it goes with whole units, and is never pruned by itself."""
        return self.part.endswith("_bias")

    @property
    def owns(self) -> bool:
        """Whether this is the first name of its tensor."""
        return self.path == self.storage


@dataclass(frozen=True)
class Anatomy:
    """A model's parameters, all names of them.

    Attributes:
        family: the configuration's model_type.
        weights: every name, tied ones too, in the model's order.
        head_scale: what the decoder's output is multiplied by before lm_head.
    """

    family: str
    weights: tuple[Weight, ...]
    head_scale: float

    @cached_property
    def _by_path(self) -> dict[str, Weight]:
        return {weight.path: weight for weight in self.weights}

    def __getitem__(self, path: str) -> Weight:
        if path in self._by_path:
            return self._by_path[path]
        raise AnatomyError(
            [f"{path}: no such parameter in this {self.family} model. {suggest(path, self._by_path)}".strip()]
        )

    def __contains__(self, path: object) -> bool:
        return path in self._by_path

    def unique(self) -> tuple[Weight, ...]:
        """List every tensor once, under its first name."""
        return tuple(weight for weight in self.weights if weight.owns)

    def tied(self, path: str) -> tuple[str, ...]:
        """List the other names of a parameter's tensor.

        Args:
            path: any of its names.

        Returns:
            The others in the model's order; empty when it has only the one.

        Raises:
            AnatomyError: there is no such parameter.
        """
        storage = self[path].storage
        return tuple(weight.path for weight in self.weights if weight.storage == storage and weight.path != path)

    @property
    def table(self) -> Weight:
        """The words' table, under the name that owns it."""
        return next(weight for weight in self.weights if weight.part == "table")

    @property
    def head(self) -> Weight | None:
        """What turns the decoder's output into words, tied to the table or not; None where nothing is written."""
        return next((weight for weight in self.weights if weight.part == "head"), None)

    @property
    def shares_head(self) -> bool:
        """Whether the head is the table."""
        return self.head is not None and not self.head.owns

    @property
    def num_parameters(self) -> int:
        """Number of elements, each tensor once."""
        return sum(weight.numel for weight in self.unique())

    def fingerprint(self) -> str:
        """Hash what masks belong to: the family, and every name with its shape. Ties do not count: untying keeps it.

        Returns:
            64 hexadecimal digits.
        """
        facts = [self.family, sorted((weight.path, weight.shape) for weight in self.weights)]
        return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()

    def select(
        self,
        *,
        role: Role,
        stack: Stack | None = None,
        layers: Collection[int] | None = None,
        match: str | None = None,
    ) -> tuple[Weight, ...]:
        """Pick the weights of a group.

        Args:
            role: the group's role. Names of a tensor that another name owns are left out, except the head's own, and
                so are the biases of matrices and norms.
            stack: only this stack.
            layers: only these layers, counted from 0 in each stack.
            match: only names that fit this glob.

        Returns:
            The weights in the model's order, at least one.

        Raises:
            AnatomyError: nothing is selected, or one of the layers is not there; says what there is.
        """
        of_role = [
            weight
            for weight in self.weights
            if weight.role == role and not weight.is_addend and (weight.owns or role == "lm_head")
        ]
        placed = [weight for weight in of_role if stack is None or weight.stack == stack]
        chosen = [weight for weight in placed if layers is None or weight.layer in layers]
        chosen = [weight for weight in chosen if match is None or fnmatchcase(weight.path, match)]
        absent = sorted(set(layers or ()) - {weight.layer for weight in placed if weight.layer is not None})
        if chosen and not absent:
            return tuple(chosen)
        asked = {"role": role, "stack": stack, "layers": None if layers is None else sorted(layers), "match": match}
        group = ", ".join(f"{key}: {value}" for key, value in asked.items() if value is not None)
        wrong = f"there is no layer {', '.join(map(str, absent))} in it" if absent else "no weight fits"
        there = f"This {self.family} model has: {summary(self.weights)}."
        names = (
            [f"Names near {match!r}: {', '.join(_globs_near(match, placed or of_role))}."] if match and of_role else []
        )
        raise AnatomyError([f"{group}: {wrong}.", there, *names])


def summary(weights: Iterable[Weight]) -> str:
    """Say in one line which roles there are, and in which layers. Tied names but the head's are left out.

    >>> summary([Weight(f"e.{layer}", "norm", "encoder", layer, (4,), f"e.{layer}", "norm") for layer in range(2)])
    'norm (encoder layers 0-1)'
    """
    places: dict[str, dict[str, set[int]]] = {}
    for weight in weights:
        if not weight.owns and weight.role != "lm_head":
            continue
        stacks = places.setdefault(weight.role, {})
        if weight.stack is not None and weight.layer is not None:
            stacks.setdefault(weight.stack, set()).add(weight.layer)
    roles = []
    for role, stacks in places.items():
        where = ", ".join(f"{stack} {_span(layers)}" for stack, layers in stacks.items())
        roles.append(f"{role} ({where})" if where else role)
    return "; ".join(roles)


def _span(layers: set[int]) -> str:
    """Write a set of layers; they are nearly always a run from 0."""
    low, high = min(layers), max(layers)
    if low == high:
        return f"layer {low}"
    if len(layers) == high - low + 1:
        return f"layers {low}-{high}"
    return "layers " + ", ".join(map(str, sorted(layers)))


def _globs_near(match: str, weights: Iterable[Weight], count: int = 4) -> list[str]:
    """Globs of a role's names, their layers left open, those most like `match` first."""
    globs = dict.fromkeys(weight.path.replace(f".{weight.layer}.", ".*.", 1) for weight in weights)
    return difflib.get_close_matches(match, list(globs), n=count, cutoff=0.0)
