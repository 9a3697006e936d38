"""The cache that generation needs where the decoder has more layers than the encoder."""

from __future__ import annotations

from typing import Any


def own_cache(config: Any) -> dict[str, Any]:
    """Give `generate` a cache of its own where transformers would make one that is too short.

    transformers 5.23 counts a cache's layers by `num_hidden_layers`, which for T5 are the encoder's: a decoder that is
    deeper then fails with an IndexError. A cache made without a configuration grows with the layers that use it.

    Args:
        config: of a T5, mT5 or UMT5.

    Returns:
        Arguments for `generate`; a new cache each time, empty where the usual one will do.
    """
    if config.num_decoder_layers <= config.num_layers:
        return {}
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}
