"""What goes together: the units that a model can lose whole, and which slice of which parameter each of them is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.roles import Anatomy, Weight
from secateur.errors import AnatomyError
from secateur.recipe.names import Role, Stack, Unit

# The matrices through which a unit's work leaves it: with these at zero, nothing of the unit reaches the rest.
_ADDED = ("o", "wo", "o_bias", "wo_bias")  # to the residual stream
OUTPUTS = {
    "head": ("o",),
    "ffn_neuron": ("wo",),
    "layer": _ADDED,
    "hidden_dim": ("table", "positions", "token_types", *_ADDED),
}
STRUCTURED: tuple[Unit, ...] = ("head", "ffn_neuron", "layer", "vocab_row", "hidden_dim")


@dataclass(frozen=True)
class Slice:
    """A unit's share of one parameter: `size` neighbours along dimension `dim`; None: the whole parameter."""

    weight: Weight
    dim: int | None
    size: int


@dataclass(frozen=True)
class Place:
    """Where units of one kind stand beside each other, so that one number counts them.

    Attributes:
        unit: the kind.
        stack: the stack; None for what both share (rows of the table, hidden dimensions).
        role: whose heads or neurons they are; None for the other kinds.
        layer: the layer; None where the units are not a layer's.
        num_units: how many there are.
        slices: for every unit the same list of parameters; for layers, one list per unit (see `members`).
        members: the index of the one unit that a slice belongs to; empty when every unit has its share of each.
        whole: whether a unit does something as long as anything of it is there, its norms included.
    """

    unit: Unit
    stack: Stack | None
    role: Role | None
    layer: int | None
    num_units: int
    slices: tuple[Slice, ...]
    members: tuple[int, ...] = ()
    whole: bool = False

    @property
    def name(self) -> str:
        """The place in words: "encoder layer 0 self_attention"."""
        words = [self.stack, None if self.layer is None else f"layer {self.layer}", self.role]
        return " ".join(word for word in words if word) or "the whole model"

    @property
    def key(self) -> tuple[Unit, Stack | None, Role | None, int | None]:
        """What tells places of one model apart, whichever tensors they have: a head that is untied adds one."""
        return self.unit, self.stack, self.role, self.layer

    def elements(self) -> int:
        """Elements of one unit, where all units are of one size; for layers the mean, rounded down."""
        total = sum(piece.weight.numel for piece in self.slices)
        return total // max(1, self.num_units)

    def outputs(self) -> tuple[int, ...]:
        """Indexes of the slices through which the units' work leaves them."""
        parts = OUTPUTS.get(self.unit, ())
        return tuple(index for index, piece in enumerate(self.slices) if piece.weight.part in parts)


def places(
    anatomy: Anatomy,
    unit: Unit,
    *,
    role: Role | None = None,
    stack: Stack | None = None,
    layers: Collection[int] | None = None,
) -> tuple[Place, ...]:
    """List where units of a kind stand.

    Couplings follow from the names of the dimensions: a head's queries, keys, values and output go together, and so
    does its column of a position bias that its layer alone uses (UMT5). A bias that a whole stack shares (T5) belongs
    to no single layer: which of its columns can go depends on all of them.

    Args:
        anatomy: the model.
        unit: head, ffn_neuron, layer, vocab_row or hidden_dim.
        role: for heads: self_attention or cross_attention, none for both.
        stack: only this stack.
        layers: only these layers; for unit layer, the layers that may go.

    Returns:
        The places in the model's order, at least one.

    Raises:
        AnatomyError: nothing is selected, or the unit has no places.
    """
    makers = {"head": _heads, "ffn_neuron": _neurons, "layer": _layers, "vocab_row": _rows, "hidden_dim": _dims}
    if unit not in makers:
        raise AnatomyError([f"unit: {unit} is no part of a model that can be cut out. There are: {', '.join(makers)}."])
    every = makers[unit](anatomy)
    found = [
        place
        for place in every
        if (role is None or place.role in (role, None))
        and (stack is None or place.stack in (stack, None))
        and (layers is None or place.layer is None or place.layer in layers)
    ]
    there = {place.layer for place in every if stack is None or place.stack == stack}
    absent = sorted(set(layers or ()) - {layer for layer in there if layer is not None})
    if absent and found:
        raise AnatomyError(
            [f"unit: {unit}: there is no layer {', '.join(map(str, absent))} in this {anatomy.family} model."]
        )
    if not found:
        asked = {"role": role, "stack": stack, "layers": layers and sorted(layers)}
        group = ", ".join(f"{key}: {value}" for key, value in asked.items() if value is not None)
        raise AnatomyError([f"unit: {unit}, {group}: this {anatomy.family} model has none there."])
    return tuple(found)


def _along(weights: Iterable[Weight], unit: Unit) -> tuple[Slice, ...]:
    """The slices of these parameters along dimensions that are made of a unit."""
    return tuple(
        Slice(weight, index, dim.size)
        for weight in weights
        for index, dim in enumerate(weight.dims)
        if dim.unit == unit
    )


def _by_layer(anatomy: Anatomy, role: Role) -> dict[tuple[Stack, int], list[Weight]]:
    found: dict[tuple[Stack, int], list[Weight]] = {}
    for weight in anatomy.unique():
        if weight.role == role and weight.stack is not None and weight.layer is not None:
            found.setdefault((weight.stack, weight.layer), []).append(weight)
    return found


def width_key(anatomy: Anatomy, place: Place) -> str:
    """Name the configuration's attribute that says how many heads or neurons a place has.

    Args:
        anatomy: the model.
        place: of heads or neurons.

    Returns:
        The same name for places that must be equally wide for plain transformers.
    """
    size = FAMILIES[anatomy.family].sizes["num_heads" if place.unit == "head" else "d_ff"]
    return size[0].format(stack=place.stack)


def own_biases(anatomy: Anatomy) -> bool:
    """Tell whether each self-attention has its own position bias (UMT5); else the first layer makes its stack's."""
    return not FAMILIES[anatomy.family].shares_bias


def _heads(anatomy: Anatomy) -> list[Place]:
    biases = _by_layer(anatomy, "position_bias") if own_biases(anatomy) else {}
    found = []
    roles: tuple[Role, ...] = ("self_attention", "cross_attention")
    for role in roles:
        for (stack, layer), weights in _by_layer(anatomy, role).items():
            own = biases.get((stack, layer), []) if role == "self_attention" else []
            slices = _along([*weights, *own], "head")
            first = slices[0]
            assert first.dim is not None
            count = first.weight.shape[first.dim] // first.size
            found.append(Place("head", stack, role, layer, count, slices))
    return found


def _neurons(anatomy: Anatomy) -> list[Place]:
    found = []
    for (stack, layer), weights in _by_layer(anatomy, "feed_forward").items():
        slices = _along(weights, "ffn_neuron")
        first = slices[0]
        assert first.dim is not None
        found.append(Place("ffn_neuron", stack, "feed_forward", layer, first.weight.shape[first.dim], slices))
    return found


def _layers(anatomy: Anatomy) -> list[Place]:
    shared = () if own_biases(anatomy) else ("position_bias",)  # what the first layer makes for all stays
    last = FAMILIES[anatomy.family].norm_last  # a norm at a layer's end works on what passes through it
    found = []
    stacks: tuple[Stack, ...] = ("encoder", "decoder")
    for stack in stacks:
        slices, members = [], []
        for weight in anatomy.unique():
            if weight.stack == stack and weight.layer is not None and weight.role not in shared:
                slices.append(Slice(weight, None, 0))
                members.append(weight.layer)
        if slices:
            found.append(Place("layer", stack, None, None, max(members) + 1, tuple(slices), tuple(members), last))
    return found


def _rows(anatomy: Anatomy) -> list[Place]:
    slices = _along(anatomy.unique(), "vocab_row")
    return [Place("vocab_row", None, None, None, slices[0].weight.shape[0], slices)]


def _dims(anatomy: Anatomy) -> list[Place]:
    slices = _along(anatomy.unique(), "hidden_dim")
    first = slices[0]
    assert first.dim is not None
    # The bias of a norm may write into a dimension that nothing else writes into.
    whole = FAMILIES[anatomy.family].layer_norm
    return [Place("hidden_dim", None, None, None, first.weight.shape[first.dim], slices, whole=whole)]
