"""Tiny models of every family, and masks for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 3,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": lambda: T5ForConditionalGeneration(T5Config(**SIZES)),
    "t5-gated": lambda: T5ForConditionalGeneration(
        T5Config(**SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**SIZES)),
    "umt5": lambda: UMT5ForConditionalGeneration(UMT5Config(**SIZES)),
}


def _make(name: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKERS[name]().eval()


@pytest.fixture
def model() -> PreTrainedModel:
    """A tied T5, no dropout, in eval mode."""
    return _make("t5")


@pytest.fixture(params=list(MAKERS))
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return _make(request.param)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(2, 40, (3, 7), generator=generator),
        "labels": torch.randint(2, 40, (3, 5), generator=generator),
    }


@pytest.fixture
def head_mask() -> torch.Tensor:
    return torch.rand(40, 16, generator=torch.Generator().manual_seed(2)) > 0.6
