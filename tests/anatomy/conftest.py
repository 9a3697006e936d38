"""One tiny configuration per kind of model. All sizes differ, so that a shape in the wrong order cannot pass."""

from __future__ import annotations

import pytest
from transformers import MT5Config, PretrainedConfig, T5Config, UMT5Config

SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 5,
    "num_heads": 3,
    "d_ff": 24,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}

# name -> class, keywords, head scale in words
CONFIGS = {
    "t5-v1.0": (T5Config, {"num_layers": 2, "num_decoder_layers": 1}, "scaled"),
    "t5-v1.1": (
        T5Config,
        {"num_layers": 1, "num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "plain",
    ),
    "mt5": (MT5Config, {"num_layers": 2, "num_decoder_layers": 1}, "plain"),
    "umt5": (UMT5Config, {"num_layers": 2, "num_decoder_layers": 3}, "scaled"),
}


def make(name: str) -> PretrainedConfig:
    config_class, keywords, _ = CONFIGS[name]
    return config_class(**SIZES, **keywords)


@pytest.fixture(params=list(CONFIGS))
def config_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(config_name: str) -> PretrainedConfig:
    return make(config_name)


@pytest.fixture
def all_configs() -> list[PretrainedConfig]:
    return [make(name) for name in CONFIGS]


@pytest.fixture
def t5_config() -> T5Config:
    return T5Config(**SIZES, **CONFIGS["t5-v1.0"][1])


@pytest.fixture
def head_scale(config_name: str) -> float:
    return SIZES["d_model"] ** -0.5 if CONFIGS[config_name][2] == "scaled" else 1.0
