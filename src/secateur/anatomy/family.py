"""What a family of models is: rows that say which parameter has which place, and how they are spelt out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from secateur.errors import AnatomyError
from secateur.recipe.names import Role, Stack, Unit

REMOVED_ROWS = "secateur_removed_rows"  # the key that names tokens whose rows masks removed from the table
WIDTHS = "secateur_widths"  # the key of config.json that says how wide each layer is
UnitSize = str | tuple[str, str] | None  # of a configuration: an attribute, one divided by another, or one element


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
class Only:
    """What a configuration has to say, because its family's models are understood in this way only.

    Attributes:
        attribute: of the configuration.
        values: those that are understood; None stands for "not there" too. Empty: anything but None.
        reason: what another value means, and what can be done.
    """

    attribute: str
    values: tuple[Any, ...]
    reason: str


@dataclass(frozen=True)
class Family:
    """A family of models that are built from the same parts.

    Attributes:
        model_type: what `config.model_type` says.
        model_class: the class of transformers that holds all the parameters.
        sizes: a dimension's name -> the configuration's attributes whose product it is; `{stack}` in an attribute
            stands for the stack.
        units: a dimension's name -> the unit that it is made of, and the configuration's attribute that counts a
            unit's elements along it (None: one; two attributes: the first divided by the second).
        num_layers: stack -> the configuration's attribute that counts its layers.
        rules: the rows; together they claim every parameter once.
        extra: a dimension's name -> elements it has beside those that the configuration counts.
        head_scaled_when: the configuration's attribute that says whether the decoder's output is multiplied by
            d_model**-0.5 before lm_head; None: never.
        layer_norm: whether norms are LayerNorms, which subtract a mean; else they are RMSNorms.
        norm_last: whether a layer norms what it gives (BERT, BART); else what it reads, so that a layer of zeros gives
            what it is given.
        attention: "num_heads", "all_heads", "head_size" -> the attribute of an attention module that holds it; only
            those that there are.
        row_buffers: buffers whose last dimension counts the table's rows.
        mirrors: an attribute of the configuration -> the attribute that it has to equal.
        only: what else a configuration has to say.
        tie_covers_stacks: whether one setting ties the head and the stacks' tables, so that it stays true when the head
            has a table of its own.
        pad_shifts_positions: whether positions are counted from the padding token's number.
        starts: classes of transformers whose checkpoints a model may start from, beside its own class.
    """

    model_type: str
    model_class: str
    sizes: Mapping[str, tuple[str, ...]]
    num_layers: Mapping[Stack, str]
    rules: tuple[Rule, ...]
    units: Mapping[str, tuple[Unit, UnitSize]] = field(default_factory=dict)
    extra: Mapping[str, int] = field(default_factory=dict)
    head_scaled_when: str | None = None
    layer_norm: bool = False
    norm_last: bool = False
    attention: Mapping[str, str] = field(default_factory=dict)
    row_buffers: tuple[str, ...] = ()
    mirrors: Mapping[str, str] = field(default_factory=dict)
    only: tuple[Only, ...] = ()
    tie_covers_stacks: bool = False
    pad_shifts_positions: bool = False
    starts: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        """The name of the words' table."""
        return next(rule.path for rule in self.rules if rule.part == "table")

    @property
    def has_head(self) -> bool:
        """Whether there is an lm_head."""
        return any(rule.part == "head" for rule in self.rules)

    @property
    def generates(self) -> bool:
        """Whether the models write text; those without a decoder classify it."""
        return "decoder" in self.num_layers

    @property
    def shares_bias(self) -> bool:
        """Whether the first layer of a stack makes the position bias for all of its layers."""
        return any(rule.role == "position_bias" and rule.first_layer_only for rule in self.rules)


@dataclass(frozen=True)
class Dim:
    """One dimension of a parameter.

    Attributes:
        name: a key of the family's `sizes`.
        unit: what is removed along it as a whole; None for a dimension that is never cut.
        size: elements of one unit along this dimension.
    """

    name: str
    unit: Unit | None
    size: int


@dataclass(frozen=True)
class Expected:
    """A parameter that a configuration calls for; `shape` in elements, `sizes` the same in words, `dims` in units."""

    path: str
    role: Role
    part: str
    stack: Stack | None
    layer: int | None
    shape: tuple[int, ...]
    sizes: tuple[str, ...]
    dims: tuple[Dim, ...]


def value(config: Any, attribute: str, stack: Stack | None) -> int:
    """Read a number off a configuration; `{stack}` in the attribute's name stands for the stack.

    >>> from types import SimpleNamespace
    >>> value(SimpleNamespace(encoder_ffn_dim=8), "{stack}_ffn_dim", "encoder")
    8
    """
    return getattr(config, attribute.format(stack=stack))


def _size(family: Family, config: Any, name: str, stack: Stack | None) -> int:
    known = prod(value(config, attribute, stack) for attribute in family.sizes[name])
    return known + family.extra.get(name, 0)


def _dim(family: Family, config: Any, name: str, stack: Stack | None, widths: Widths | None) -> Dim:
    unit, size = family.units.get(name, (None, None))
    if widths is not None and stack is not None and unit == "head" and size and stack in widths.head_sizes:
        return Dim(name, unit, widths.head_sizes[stack])
    if isinstance(size, tuple):
        return Dim(name, unit, value(config, size[0], stack) // value(config, size[1], stack))
    return Dim(name, unit, 1 if size is None else value(config, size, stack))


@dataclass(frozen=True)
class Widths:
    """Widths of a ragged model, whose layers differ: what its configuration holds as `secateur_widths`.

    Attributes:
        heads: "STACK.ROLE" -> per layer, the columns of its position bias that its heads use; a layer without a
            position bias numbers its heads from 0.
        neurons: stack -> feed-forward neurons per layer.
        head_sizes: stack -> elements of one head, where transformers would divide d_model by the number of heads.
        embed_scale: what embeddings are multiplied by, where transformers would take the root of d_model.
    """

    heads: Mapping[str, Sequence[Sequence[int]]]
    neurons: Mapping[str, Sequence[int]]
    head_sizes: Mapping[str, int] = field(default_factory=dict)
    embed_scale: float | None = None

    @classmethod
    def of(cls, config: Any) -> Widths | None:
        """Read them off a configuration.

        Args:
            config: with or without the key.

        Returns:
            The widths; None for a plain configuration, whose layers are all alike.

        Raises:
            AnatomyError: the key is there and holds something else.
        """
        raw = getattr(config, WIDTHS, None)
        if raw is None:
            return None
        try:
            heads = {key: tuple(tuple(map(int, layer)) for layer in layers) for key, layers in raw["heads"].items()}
            neurons = {stack: tuple(map(int, layers)) for stack, layers in raw["neurons"].items()}
            sizes = {stack: int(size) for stack, size in raw.get("head_sizes", {}).items()}
            scale = raw.get("embed_scale")
            return cls(heads, neurons, sizes, None if scale is None else float(scale))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise AnatomyError([f"config.json: {WIDTHS} is damaged. Cut the model again."]) from error

    def as_json(self) -> dict[str, Any]:
        """The value that `of` reads."""
        told: dict[str, Any] = {
            "heads": {key: [list(layer) for layer in layers] for key, layers in self.heads.items()},
            "neurons": {stack: list(layers) for stack, layers in self.neurons.items()},
        }
        told |= {"head_sizes": dict(self.head_sizes)} if self.head_sizes else {}
        return told | ({} if self.embed_scale is None else {"embed_scale": self.embed_scale})

    def shape_of(
        self,
        first_layer_only: bool,
        role: Role,
        stack: Stack | None,
        layer: int | None,
        shape: tuple[int, ...],
        dims: tuple[Dim, ...],
    ) -> tuple[int, ...]:
        """Correct a parameter's shape, in elements, for its own layer."""
        if stack is None or layer is None:
            return shape
        return tuple(
            self._count(dim, first_layer_only, role, stack, layer) * dim.size
            if dim.unit in ("head", "ffn_neuron")
            else n
            for n, dim in zip(shape, dims, strict=True)
        )

    def _count(self, dim: Dim, first_layer_only: bool, role: Role, stack: Stack, layer: int) -> int:
        try:
            if dim.unit == "ffn_neuron":
                return self.neurons[stack][layer]
            if role != "position_bias":
                return len(self.heads[f"{stack}.{role}"][layer])
            layers = self.heads[f"{stack}.self_attention"]
            columns = [column for own in (layers if first_layer_only else layers[layer : layer + 1]) for column in own]
            return max(columns) + 1
        except (KeyError, IndexError, ValueError) as error:
            raise AnatomyError([f"config.json: {WIDTHS} says nothing of {stack} layer {layer}, {role}."]) from error


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
    widths = Widths.of(config)
    for rule in family.rules:
        for stack, layer in _places(family, rule, config):
            shape = tuple(_size(family, config, size, stack) for size in rule.shape)
            dims = tuple(_dim(family, config, size, stack, widths) for size in rule.shape)
            path = rule.path.format(stack=stack, layer=layer)
            if path in found:
                faults.append(f"{path}: claimed by two rows of the family. Each parameter needs exactly one.")
            own = widths.shape_of(rule.first_layer_only, rule.role, stack, layer, shape, dims) if widths else shape
            found[path] = Expected(path, rule.role, rule.part, stack, layer, own, rule.shape, dims)
    if faults:
        raise AnatomyError(faults, f"The rules of family {family.model_type!r} contradict each other:")
    return found
