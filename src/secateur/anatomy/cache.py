"""The cache that generation needs where the decoder has more layers than the encoder."""

from __future__ import annotations

from typing import Any

from secateur.anatomy.families import FAMILIES


def own_cache(config: Any) -> dict[str, Any]:
    """Give `generate` a cache of its own where transformers would make one that is too short.

    transformers 5.23 counts a cache's layers by `num_hidden_layers`, which for T5 are the encoder's: a decoder that is
    deeper then fails with an IndexError. A cache made without a configuration grows with the layers that use it.

    Args:
        config: of a model that writes text.

    Returns:
        Arguments for `generate`; a new cache each time, empty where the usual one will do.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        return {}
    layers = family.num_layers
    if getattr(config, layers["decoder"]) <= getattr(config, layers["encoder"]):
        return {}
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}
