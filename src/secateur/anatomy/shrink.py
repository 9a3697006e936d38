"""How large a model is after whole units left it, told without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from secateur.anatomy.roles import Anatomy, Weight
from secateur.anatomy.units import STRUCTURED, Place, own_biases, places, width_key
from secateur.recipe.names import Role, Stack, Unit

WIDE: tuple[Unit, ...] = ("head", "ffn_neuron")  # what a layer has a width of


@dataclass
class Kept:
    """How many units stay at every place of a model.

    Args:
        anatomy: the model.
        counts: (unit, stack, role, layer) -> units that stay; what is missing keeps all.
        layers: stack -> the layers that stay.
    """

    anatomy: Anatomy
    counts: dict[tuple[Unit, Stack | None, Role | None, int | None], int] = field(default_factory=dict)
    layers: dict[Stack, tuple[int, ...]] = field(default_factory=dict)

    def keep(self, place: Place, count: int) -> None:
        """Say that no more than so many units of a place stay."""
        self.counts[place.key] = min(count, self.of(place))

    def keep_layers(self, stack: Stack, layers: tuple[int, ...]) -> None:
        """Say which layers of a stack stay, of those that did."""
        before = self.layers.get(stack)
        self.layers[stack] = tuple(layer for layer in before if layer in layers) if before else layers

    def of(self, place: Place) -> int:
        """How many units of a place stay."""
        return self.counts.get(place.key, place.num_units)

    def elements(self, weight: Weight) -> int:
        """Elements of a parameter that stay when the units are masked; whole layers leave nothing."""
        stays = self.layers.get(weight.stack) if weight.stack is not None else None
        shared = weight.role == "position_bias" and not own_biases(self.anatomy)
        if stays is not None and weight.layer is not None and weight.layer not in stays and not shared:
            return 0
        return prod(self.along(weight, index, shared=shared) for index in range(len(weight.shape)))

    def along(self, weight: Weight, index: int, *, shared: bool) -> int:
        """Elements of a parameter's dimension that stay; a position bias that a stack shares keeps its columns."""
        dim = weight.dims[index]
        whole = weight.shape[index]
        if dim.unit is None or (dim.unit == "head" and shared):
            return whole
        role: Role = "self_attention" if weight.role == "position_bias" else weight.role
        own = dim.unit in ("head", "ffn_neuron")
        key = (dim.unit, weight.stack, role, weight.layer) if own else (dim.unit, None, None, None)
        return self.counts.get(key, whole // dim.size) * dim.size

    @property
    def anything(self) -> bool:
        """Whether any unit goes."""
        gone = [
            place.stack in self.layers and len(self.layers[place.stack]) < place.num_units
            if place.unit == "layer" and place.stack is not None
            else self.of(place) < place.num_units
            for unit in STRUCTURED
            for place in places(self.anatomy, unit)
        ]
        return any(gone)


def is_ragged(anatomy: Anatomy) -> bool:
    """Tell whether layers differ in their number of heads or neurons."""
    widths: dict[str, set[int]] = {}
    for unit in WIDE:
        for place in places(anatomy, unit):
            widths.setdefault(width_key(anatomy, place), set()).add(place.num_units)
    return any(len(found) > 1 for found in widths.values())


def shrink(kept: Kept, *, ragged: bool) -> Anatomy:
    """Tell what a model becomes when it is cut.

    Args:
        kept: what stays of it.
        ragged: each layer as wide as it is; else all as wide as the widest.

    Returns:
        The smaller model's map, layers numbered anew.
    """
    anatomy = kept.anatomy
    widest = _widest(kept)
    found, storages = [], {}
    for weight in anatomy.weights:
        layers = kept.layers.get(weight.stack) if weight.stack is not None else None
        layer, path = weight.layer, weight.path
        shared = weight.role == "position_bias" and not own_biases(anatomy)
        if layers is not None and layer is not None and not shared:
            if layer not in layers:
                continue
            path = path.replace(f".{layer}.", f".{layers.index(layer)}.", 1)
            layer = layers.index(layer)
        shape = tuple(
            size if dim.unit is None else _size(kept, weight, index, widest=widest, ragged=ragged, shared=shared)
            for index, (size, dim) in enumerate(zip(weight.shape, weight.dims, strict=True))
        )
        storages[weight.path] = path
        found.append(replace(weight, path=path, layer=layer, shape=shape, storage=storages.get(weight.storage, path)))
    smaller = Anatomy(anatomy.family, tuple(found), 1.0)
    return smaller if anatomy.head_scale == 1.0 else replace(smaller, head_scale=smaller.table.shape[1] ** -0.5)


def _widest(kept: Kept) -> dict[tuple[Unit, Stack | None], int]:
    """How wide the widest of those layers is that have to be alike, by unit and stack."""
    counted: dict[str, int] = {}
    keys: dict[tuple[Unit, Stack | None], str] = {}
    for unit in WIDE:
        for place in places(kept.anatomy, unit):
            key = keys[unit, place.stack] = width_key(kept.anatomy, place)
            if place.stack is None or place.layer in kept.layers.get(place.stack, (place.layer,)):
                counted[key] = max(counted.get(key, 0), kept.of(place))
    return {place: counted[key] for place, key in keys.items()}


def _size(
    kept: Kept,
    weight: Weight,
    index: int,
    *,
    widest: Mapping[tuple[Unit, Stack | None], int],
    ragged: bool,
    shared: bool,
) -> int:
    dim = weight.dims[index]
    if dim.unit in WIDE and (shared or not ragged):
        return widest[dim.unit, weight.stack] * dim.size
    return kept.along(weight, index, shared=shared)
