"""How many layers each stack of a model has, told by its configuration or by its map."""

from __future__ import annotations

from typing import Any

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.roles import Anatomy
from secateur.recipe.names import Stack


def depths(config: Any) -> dict[Stack, int]:
    """Read the numbers of layers off a configuration.

    Args:
        config: of transformers; of a family that we do not know, what most of them call it.

    Returns:
        Stack -> number of layers; without the decoder for an encoder alone.
    """
    family = FAMILIES.get(config.model_type)
    if family is not None:
        return {stack: int(getattr(config, attribute)) for stack, attribute in family.num_layers.items()}
    names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
    found: dict[Stack, int] = {"encoder": config.num_hidden_layers}
    if config.is_encoder_decoder:
        found["decoder"] = next(getattr(config, name) for name in names if getattr(config, name, None) is not None)
    return found


def depths_of(anatomy: Anatomy) -> dict[Stack, int]:
    """Count the layers of a map.

    Args:
        anatomy: of any model.

    Returns:
        Stack -> number of layers; without the stacks that the model lacks.
    """
    found: dict[Stack, set[int]] = {}
    for weight in anatomy.weights:
        if weight.stack is not None and weight.layer is not None:
            found.setdefault(weight.stack, set()).add(weight.layer)
    return {stack: len(layers) for stack, layers in found.items()}


__all__ = ["depths", "depths_of"]
