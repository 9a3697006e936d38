"""One tiny configuration per kind of model. All sizes differ, so that a shape in the wrong order cannot pass."""

from __future__ import annotations

import pytest
from transformers import (
    BartConfig,
    BertConfig,
    DistilBertConfig,
    MarianConfig,
    MBartConfig,
    MT5Config,
    PegasusConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
    UMT5Config,
)

SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 5,
    "num_heads": 3,
    "d_ff": 24,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}

# A head's size follows from two of these, so all_heads is d_model: q, k, v and o of an encoder are square.
ENCODER = {
    "vocab_size": 40,
    "hidden_size": 18,
    "num_attention_heads": 3,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "num_hidden_layers": 2,
    "num_labels": 5,
}
DISTILLED = {
    "vocab_size": 40,
    "dim": 18,
    "n_heads": 3,
    "hidden_dim": 24,
    "max_position_embeddings": 32,
    "n_layers": 3,
    "num_labels": 5,
}

BART = {
    "vocab_size": 40,
    "d_model": 20,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 5,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
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
    "bart": (BartConfig, BART, "plain"),
    "mbart": (MBartConfig, BART, "plain"),
    "marian": (MarianConfig, {**BART, "decoder_vocab_size": 40}, "plain"),
    "pegasus": (PegasusConfig, BART, "plain"),
    "bert": (BertConfig, ENCODER, "none"),
    "roberta": (RobertaConfig, {**ENCODER, "type_vocab_size": 1, "pad_token_id": 1}, "none"),
    "distilbert": (DistilBertConfig, DISTILLED, "none"),
}
T5_LIKE = ("t5-v1.0", "t5-v1.1", "mt5", "umt5")
WRITERS = (*T5_LIKE, "bart", "mbart", "marian", "pegasus")
ENCODERS = ("bert", "roberta", "distilbert")


def make(name: str) -> PretrainedConfig:
    config_class, keywords, _ = CONFIGS[name]
    return config_class(**(SIZES if name in T5_LIKE else {}), **keywords)


@pytest.fixture(params=list(CONFIGS))
def config_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(config_name: str) -> PretrainedConfig:
    return make(config_name)


@pytest.fixture(params=WRITERS)
def writer_config(request: pytest.FixtureRequest) -> PretrainedConfig:
    return make(request.param)


@pytest.fixture(params=ENCODERS)
def encoder_config(request: pytest.FixtureRequest) -> PretrainedConfig:
    return make(request.param)


@pytest.fixture
def all_configs() -> list[PretrainedConfig]:
    return [make(name) for name in CONFIGS]


@pytest.fixture
def t5_config() -> T5Config:
    return T5Config(**SIZES, **CONFIGS["t5-v1.0"][1])


@pytest.fixture(params=T5_LIKE)
def t5_like(request: pytest.FixtureRequest) -> tuple[PretrainedConfig, float]:
    """A configuration, and what its models multiply the decoder's output by."""
    scale = SIZES["d_model"] ** -0.5 if CONFIGS[request.param][2] == "scaled" else 1.0
    return make(request.param), scale
