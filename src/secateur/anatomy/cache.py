"""The cache with which generation works: as deep as the decoder, and not copied for the beams of one source."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from secateur.anatomy.families import FAMILIES


class SourceCache(DynamicCache):
    """What the decoder reads of the source: the same for all beams of a row, so that it stays where it is.

    A beam is always continued by a beam of the same source, but transformers 5.23 copies the keys and values of all
    sources after every token: 40 % of the time of 4 beams over texts of 55 words.
    """

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Do nothing: rows (B x beams,) change places only within one source.

        Args:
            beam_idx: int64 (B x beams,), the row that each row goes on with.
        """


def own_cache(config: Any) -> dict[str, Any]:
    """Give `generate` a cache of its own.

    It grows with the layers that use it. transformers 5.23 counts a cache's layers by `num_hidden_layers`, which for
    T5 are the encoder's: a decoder that is deeper then fails with an IndexError.

    Args:
        config: of a model that writes text.

    Returns:
        Arguments for `generate`; a new cache each time, none for a model of an unknown family.
    """
    if config.model_type not in FAMILIES:
        return {}
    return {"past_key_values": EncoderDecoderCache(DynamicCache(), SourceCache())}


__all__ = ["SourceCache", "own_cache"]
