"""Checkpoints of the T5 family as their makers publish them: their configuration, one table or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

HEAD = "lm_head.weight"
# 24 ** -0.5 is no power of two: folding it into the head rounds, and what rests on an exact fold fails here.
SIZES = {
    "vocab_size": 40,
    "d_model": 24,
    "d_kv": 4,
    "d_ff": 20,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "t5": (T5ForConditionalGeneration, T5Config, {}),
    "t5-v1.1": (
        T5ForConditionalGeneration,
        T5Config,
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": (MT5ForConditionalGeneration, MT5Config, {}),
    "umt5": (UMT5ForConditionalGeneration, UMT5Config, {}),
}


def given(name: str, folder: Path, *, own_head: bool) -> Path:
    """Write a checkpoint as its makers publish it: their config.json, one table or two."""
    model_class, config_class, options = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = model_class(config_class(**SIZES, **options))
        state = {key: value.clone() for key, value in model.state_dict().items() if "embed_tokens" not in key}
        state.pop(HEAD)
        if own_head:
            state[HEAD] = torch.randn(40, 24)
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": not own_head}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder
