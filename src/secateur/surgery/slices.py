"""From masks to what stays: which layers, heads, neurons, rows and dimensions a smaller model is made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.anatomy.family import Widths
from secateur.anatomy.roles import Anatomy
from secateur.anatomy.units import STRUCTURED, Place, own_biases, places, width_key
from secateur.errors import MaskError
from secateur.masks.mask import MaskSet
from secateur.masks.structure import alive_units
from secateur.recipe.names import Stack, Unit, Width

Indexes = tuple[int, ...]


@dataclass(frozen=True)
class Remainder:
    """What stays of a model; every index counts in the model that is cut.

    Attributes:
        layers: stack -> the layers that stay.
        heads: "STACK.ROLE" -> for each layer that stays, the heads that do.
        neurons: stack -> for each layer that stays, the feed-forward neurons that do.
        rows: rows of the table.
        dims: hidden dimensions.
        ragged: whether layers differ in width.
        padding: dead units that stay only because every layer must be as wide as the widest, per unit kind.
    """

    layers: Mapping[Stack, Indexes]
    heads: Mapping[str, tuple[Indexes, ...]]
    neurons: Mapping[Stack, tuple[Indexes, ...]]
    rows: Indexes
    dims: Indexes
    ragged: bool
    padding: Mapping[Unit, int]

    def smaller(self, anatomy: Anatomy) -> bool:
        """Whether anything goes of the model that this is what stays of."""
        kept: dict[Unit, int] = {
            "layer": sum(map(len, self.layers.values())),
            "head": sum(len(layer) for layers in self.heads.values() for layer in layers),
            "ffn_neuron": sum(len(layer) for layers in self.neurons.values() for layer in layers),
            "vocab_row": len(self.rows),
            "hidden_dim": len(self.dims),
        }
        return any(kept[unit] < sum(place.num_units for place in places(anatomy, unit)) for unit in STRUCTURED)

    def as_json(self) -> dict[str, Any]:
        """How many of each stay, and which layers."""
        return {
            "layers": {stack: list(kept) for stack, kept in self.layers.items()},
            "heads": {key: [len(layer) for layer in layers] for key, layers in self.heads.items()},
            "neurons": {stack: [len(layer) for layer in layers] for stack, layers in self.neurons.items()},
            "rows": len(self.rows),
            "dims": len(self.dims),
            "ragged": self.ragged,
            "padding": dict(self.padding),
        }


def _indexes(alive: Tensor) -> Indexes:
    return tuple(alive.nonzero().flatten().tolist())


def remainder(
    anatomy: Anatomy,
    masks: MaskSet,
    *,
    width: Width = "uniform",
    units: Collection[Unit] = STRUCTURED,
) -> Remainder:
    """Find out what masks leave of a model.

    One width serves all layers of both stacks in the configuration of T5, of each stack in that of BART: with
    `uniform` every layer keeps as many heads, and as many neurons, as the widest of them needs; narrower ones keep dead
    units, which stay zero. Where a stack shares one position bias, its self-attentions keep the same heads. `ragged`
    gives each layer its own.

    Args:
        anatomy: the model's map.
        masks: what is removed from it; units that only some weights are removed from stay.
        width: uniform or ragged.
        units: the kinds that may be cut.

    Returns:
        What stays; at least one of each kind at every place.

    Raises:
        MaskError: the masks belong to another model.
    """
    if masks.owner and masks.owner != anatomy.fingerprint():
        raise MaskError("These masks belong to another model (family, names or shapes differ). Prune this one.")
    if odd := sorted(path for path in masks.masks if path not in anatomy):
        raise MaskError(f"{odd[0]}: the model has no such parameter. The mask belongs to another model.")

    def alive(place: Place) -> Tensor:
        every = torch.ones(place.num_units, dtype=torch.bool)
        return alive_units(place, masks.masks) if place.unit in units else every

    layers: dict[Stack, Indexes] = {}
    for place in places(anatomy, "layer"):
        assert place.stack is not None
        layers[place.stack] = _indexes(alive(place)) or (0,)
    live = {"head": places(anatomy, "head"), "ffn_neuron": places(anatomy, "ffn_neuron")}
    found = {
        place: alive(place)
        for kind in live.values()
        for place in kind
        if place.stack is not None and place.layer in layers[place.stack]
    }
    kept = _each_one(found)
    heads_before = {place: len(units) for place, units in kept.items()}
    if width == "uniform":
        kept = _uniform(anatomy, kept)
    padding: dict[Unit, int] = {}
    for place, units_kept in kept.items():
        extra = len(units_kept) - heads_before[place]
        if extra:
            padding[place.unit] = padding.get(place.unit, 0) + extra
    heads: dict[str, tuple[Indexes, ...]] = {}
    neurons: dict[Stack, tuple[Indexes, ...]] = {}
    for place, units_kept in kept.items():
        assert place.stack is not None
        if place.unit == "head":
            key = f"{place.stack}.{place.role}"
            heads[key] = (*heads.get(key, ()), units_kept)
        else:
            neurons[place.stack] = (*neurons.get(place.stack, ()), units_kept)
    rows, dims = (_indexes(alive(places(anatomy, unit)[0])) for unit in ("vocab_row", "hidden_dim"))
    return Remainder(layers, heads, neurons, rows, dims or (0,), _is_ragged(anatomy, kept), padding)


def _each_one(found: Mapping[Place, Tensor]) -> dict[Place, Indexes]:
    """Every place keeps one unit at least: a layer without heads is no layer."""
    return {place: _indexes(alive) or (0,) for place, alive in found.items()}


def _uniform(anatomy: Anatomy, kept: Mapping[Place, Indexes]) -> dict[Place, Indexes]:
    """Widen every place to the widest, with dead units of the lowest index; stacks that share a bias keep one set."""
    shared: dict[object, set[int]] = {}
    pool_of: dict[Place, object] = {}
    for index, (place, units) in enumerate(kept.items()):
        together = place.unit == "head" and place.role == "self_attention" and not own_biases(anatomy)
        pool_of[place] = ("bias", place.stack) if together else index
        shared.setdefault(pool_of[place], set()).update(units)
    widest: dict[str, int] = {}
    for place in kept:
        key = width_key(anatomy, place)
        widest[key] = max(widest.get(key, 0), len(shared[pool_of[place]]))
    wide = {}
    for place in kept:
        chosen = shared[pool_of[place]]
        spare = [unit for unit in range(place.num_units) if unit not in chosen]
        wide[place] = tuple(sorted([*chosen, *spare[: widest[width_key(anatomy, place)] - len(chosen)]]))
    return wide


def _is_ragged(anatomy: Anatomy, kept: Mapping[Place, Indexes]) -> bool:
    widths: dict[str, set[int]] = {}
    heads: dict[object, set[Indexes]] = {}
    for place, units in kept.items():
        widths.setdefault(width_key(anatomy, place), set()).add(len(units))
        if place.role == "self_attention":
            heads.setdefault(place.stack, set()).add(units)
    if any(len(found) > 1 for found in widths.values()):
        return True
    return not own_biases(anatomy) and any(len(found) > 1 for found in heads.values())


def widths_of(anatomy: Anatomy, rest: Remainder, columns: Mapping[Stack, Indexes]) -> Widths:
    """Write down how wide the layers of a ragged model are.

    Args:
        anatomy: of the model that is cut.
        rest: what stays of it.
        columns: stack -> the columns of its shared position bias that stay (empty where each layer has its own).

    Returns:
        Widths for the smaller model's configuration.
    """
    heads = {}
    for key, layers in rest.heads.items():
        stack, _, role = key.partition(".")
        place = {column: index for index, column in enumerate(columns.get(_stack(stack), ()))}
        by_column = role == "self_attention" and not own_biases(anatomy)
        heads[key] = tuple(
            tuple(place[head] for head in layer) if by_column else tuple(range(len(layer))) for layer in layers
        )
    return Widths(heads, {stack: tuple(len(layer) for layer in layers) for stack, layers in rest.neurons.items()})


def _stack(name: str) -> Stack:
    return "encoder" if name == "encoder" else "decoder"
