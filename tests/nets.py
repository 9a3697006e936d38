"""Small nets of every family that write many different tokens, and masks that remove whole units of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.units import places
from secateur.masks.mask import MaskSet
from secateur.masks.structure import prune_units
from secateur.masks.tie import untie
from secateur.masks.unit_scores import Evidence
from secateur.recipe.names import Unit, Width

VOCABULARY = 640
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 5,
    "d_ff": 36,
    "num_layers": 3,
    "num_decoder_layers": 4,
    "num_heads": 6,
    "relative_attention_num_buckets": 8,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES = ("t5-v1.0", "t5-v1.1", "mt5", "umt5")
ENCODERS = ("bert", "roberta", "distilbert")
BARTS = ("bart", "mbart", "marian", "pegasus")
_BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 24,
    "dropout": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "forced_eos_token_id": 1,
}
_BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "max_position_embeddings": 24,
    "num_labels": 5,
}
_DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 24,
    "n_heads": 4,
    "hidden_dim": 36,
    "n_layers": 3,
    "max_position_embeddings": 24,
    "num_labels": 5,
}
AMOUNTS: dict[Unit, float] = {"head": 0.5, "ffn_neuron": 0.6, "layer": 0.34, "hidden_dim": 0.25, "vocab_row": 0.3}


def make(name: str) -> Any:
    """A net whose outputs depend on its source: all weights drawn anew, wide enough for many tokens to win."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if name == "t5-v1.0":
            model: Any = T5ForConditionalGeneration(T5Config(**SIZES))
        elif name == "t5-v1.1":
            model = T5ForConditionalGeneration(T5Config(**SIZES, feed_forward_proj="gated-gelu"))
            model.config.scale_decoder_outputs = False
            untie(model)
        elif name == "mt5":
            model = MT5ForConditionalGeneration(MT5Config(**SIZES))
            untie(model)
        else:
            model = UMT5ForConditionalGeneration(UMT5Config(**SIZES))
            untie(model)
        for path, parameter in model.named_parameters():
            if "layer_norm" in path:
                parameter.data.uniform_(0.5, 1.5)
            elif "EncDecAttention.o" in path or "EncDecAttention.v" in path:
                parameter.data.normal_(0.0, 1.0)
            elif "Attention.o" in path or "Attention.v" in path:
                parameter.data.normal_(0.0, 0.2)
            elif "relative_attention_bias" in path:
                parameter.data.normal_(0.0, 1.0)
            elif parameter.shape[0] == VOCABULARY:
                parameter.data.normal_(0.0, 1.0)  # rows of one length, or the longest would win everywhere
                parameter.data *= SIZES["d_model"] ** 0.5 / parameter.data.norm(dim=1, keepdim=True)
            else:
                parameter.data.normal_(0.0, 0.15)
    return model.eval()


def _layer_normed(name: str) -> Any:
    if name == "bert":
        return BertForSequenceClassification(BertConfig(**_BERT))
    if name == "roberta":
        config = RobertaConfig(**_BERT, pad_token_id=1, bos_token_id=0, eos_token_id=None)
        return RobertaForSequenceClassification(config)
    if name == "distilbert":
        return DistilBertForSequenceClassification(DistilBertConfig(**_DISTILBERT))
    if name == "bart":
        return BartForConditionalGeneration(BartConfig(**_BART))
    if name == "mbart":
        return MBartForConditionalGeneration(MBartConfig(**_BART, scale_embedding=True))
    if name == "marian":
        config = MarianConfig(**_BART, scale_embedding=True, decoder_vocab_size=VOCABULARY)
        return MarianMTModel(config)
    return PegasusForConditionalGeneration(PegasusConfig(**_BART))


def make_layer_normed(name: str) -> Any:
    """A net of an encoder or of BART's kin in which every bias and norm does something."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = _layer_normed(name)
        for path, parameter in model.named_parameters():
            if "norm" in path.lower() and path.endswith("weight"):
                parameter.data.uniform_(0.5, 1.5)
            elif parameter.shape[0] == VOCABULARY:
                parameter.data.normal_(0.0, 2.0)  # texts differ in their words
            elif path.startswith("classifier"):
                parameter.data.normal_(0.0, 0.05 if path.endswith("bias") else 1.0)  # and fall into several classes
            elif parameter.requires_grad:  # not the waves that mark positions
                parameter.data.normal_(0.0, 0.3)
        if name in BARTS:
            model.final_logits_bias.normal_()
    return model.eval()


def masks_of(model: Any, units: Collection[Unit], *, width: Width = "uniform", score: str = "random") -> MaskSet:
    """Masks that remove whole units of these kinds."""
    anatomy = anatomy_of(model)
    masks = MaskSet.empty(anatomy.fingerprint())
    for unit in units:
        counts = torch.arange(VOCABULARY).flip(0)
        found = prune_units(
            model,
            anatomy,
            places(anatomy, unit),
            already=masks,
            sparsity=AMOUNTS[unit],
            score="frequency" if unit == "vocab_row" else score,
            width=width,
            evidence=Evidence(counts=counts, floor=frozenset({0, 1})),
            seed=3,
        )
        masks = MaskSet({**masks.masks, **found}, dict.fromkeys({**masks.masks, **found}, "hold"), masks.owner)
    return masks
