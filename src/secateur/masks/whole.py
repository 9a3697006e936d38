"""Find what masks removed whole and the live model must leave out; see `anatomy.gaps`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secateur.anatomy.check import anatomy_within
from secateur.anatomy.families import FAMILIES
from secateur.anatomy.gaps import Gaps
from secateur.anatomy.units import places
from secateur.masks.structure import alive_units
from secateur.recipe.names import Stack


def find_gaps(model: nn.Module, masks: Mapping[str, Tensor]) -> Gaps:
    """Tell what a model must leave out while masks lie on it.

    Args:
        model: any module; only one of our families that has LayerNorms can have gaps.
        masks: parameter name -> bool, True = keep.

    Returns:
        Hidden dimensions and layers of which nothing is left; of layers only where their norms come last.
    """
    config: Any = getattr(model, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None or not family.layer_norm or not masks:
        return Gaps()
    anatomy = anatomy_within(model)
    (dims,) = places(anatomy, "hidden_dim")
    alive = alive_units(dims, masks)
    layers: dict[Stack, tuple[int, ...]] = {}
    for place in places(anatomy, "layer") if family.norm_last else ():
        assert place.stack is not None
        layers[place.stack] = tuple((~alive_units(place, masks)).nonzero().flatten().tolist())
    kept = None if bool(alive.all()) else tuple(alive.nonzero().flatten().tolist())
    return Gaps(kept, {stack: gone for stack, gone in layers.items() if gone})
