"""Eager attention for training on a CPU: transformers' own result, with dropout that does not cost a sixth of the step.

T5's attention drops probabilities by a function, not by a module, so that no module can be put in its place; but it
asks transformers' registry how to attend, and a name of our own there is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from secateur.retrain.dropout import LEVELS, draw_kept, num_dropped

NAME = "secateur_eager"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend, as the `eager_attention_forward` of transformers' T5 does; without dropout the bits are the same.

    Args:
        module: asks; its dropout acts while it trains.
        query: (batch, heads, targets, size of a head), floating point, on a CPU.
        key: (batch, heads, sources, size of a head).
        value: as `key`.
        attention_mask: added to the scores: 0, or the lowest number where nothing may be seen; broadcasts to them.
        scaling: of the scores; by default the inverse root of a head's size. T5 has 1.
        dropout: rate, rounded to the next 1/256 as in `ByteDropout`.
        position_bias: added to the scores; broadcasts to them.
        **kwargs: what other implementations need.

    Returns:
        (batch, targets, heads, size of a head), and the probabilities (batch, heads, targets, sources), not scaled up
        for what was dropped.
    """
    scores = torch.matmul(query, key.transpose(2, 3))
    factor = query.size(-1) ** -0.5 if scaling is None else scaling
    if factor != 1.0:
        scores = scores * factor
    for summand in (position_bias, attention_mask):
        if summand is not None:
            scores = scores + summand
    found = nn.functional.softmax(scores, dim=-1).to(value.dtype)
    dropped = num_dropped(dropout) if module.training else 0
    if dropped:
        found = found * draw_kept(found, dropped).to(found.dtype)
    seen = torch.matmul(found, value)
    if dropped:  # here, where elements are fewer, and a factor that bf16 cannot hold is rounded once
        seen = seen * (LEVELS / (LEVELS - dropped))
    return seen.transpose(1, 2).contiguous(), found


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def attention_of(model: Any, attention: str, *, device: str) -> Iterator[None]:
    """Let a model attend in one way for the time of a block, and as it did before afterwards.

    What later stages read of the model (gradients, activations) must not depend on whether it was trained in this
    process or loaded anew.

    Args:
        model: a Hugging Face model.
        attention: eager or sdpa.
        device: `attend` takes over from eager on "cpu".

    Yields:
        Nothing.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME if (attention, device) == ("eager", "cpu") else attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
