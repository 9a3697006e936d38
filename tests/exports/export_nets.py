"""Tiny models of every family that write many different tokens, and what they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.units import places
from secateur.artifacts.checkpoint import save_plain
from secateur.files import read_json, write_json
from secateur.masks.mask import MaskSet
from secateur.masks.structure import prune_units
from secateur.masks.tie import untie
from secateur.surgery.cut import cut
from secateur.surgery.slices import remainder

VOCABULARY = 509  # no multiple of 8, and more than the tokenizer knows
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 5,
    "num_heads": 3,  # 15 is not d_model
    "d_ff": 72,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "initializer_factor": 1.3,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
# Lengths are odd and even, and beyond the largest distance of a position bias.
ROWS = [
    [*torch.randint(3, 500, (length,), generator=torch.Generator().manual_seed(length)).tolist(), 1]
    for length in (4, 5, 7, 9, 12, 13, 17, 18, 20, 23, 26, 30, 35, 38, 41, 47)
]
TARGETS = [
    [*torch.randint(3, 500, (length,), generator=torch.Generator().manual_seed(-length)).tolist(), *end]
    for length, end in ((3, [1]), (9, [1]), (1, []), (6, []), (24, [1]), (30, []), (2, [1]), (12, [1])) * 2
]
SUPPRESSED = [244, 307]  # what mt5 writes most often when it may
MORE_ENDS = [299]  # umt5 may end with this one too
KINDS = {
    "t5": (T5Config, T5ForConditionalGeneration, {"num_layers": 2, "num_decoder_layers": 3}),
    "t5-v1.1": (
        T5Config,
        T5ForConditionalGeneration,
        {
            "num_layers": 2,
            "num_decoder_layers": 2,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
        },
    ),
    "mt5": (MT5Config, MT5ForConditionalGeneration, {"num_layers": 2, "num_decoder_layers": 1}),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration, {"num_layers": 2, "num_decoder_layers": 2}),
}


BART_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 72,
    "decoder_ffn_dim": 56,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "forced_eos_token_id": 1,
}
BART_KINDS: dict[str, Any] = {
    "bart": (BartConfig, BartForConditionalGeneration, {"decoder_start_token_id": 1}),
    "mbart": (MBartConfig, MBartForConditionalGeneration, {"scale_embedding": True, "activation_function": "relu"}),
    "marian": (
        MarianConfig,
        MarianMTModel,
        {"scale_embedding": True, "activation_function": "swish", "decoder_vocab_size": VOCABULARY},
    ),
    "pegasus": (PegasusConfig, PegasusForConditionalGeneration, {"activation_function": "gelu_new"}),
}


def tokenizer() -> Any:
    """Names the first 500 ids."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{index}": index for index in range(3, 500)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def enliven(model: Any) -> None:
    """Make a random net write many tokens and end now and then, while its logits stay well-conditioned."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("SelfAttention.o.weight"):
                parameter *= 2  # sublayers must outweigh the last token's embedding, or a tied head repeats it
            if name.endswith("EncDecAttention.o.weight"):
                parameter *= 3
            if "relative_attention_bias" in name:
                parameter *= 3
            if name.endswith("norm.weight"):
                parameter *= torch.rand_like(parameter) + 0.5
        model.shared.weight *= 0.3
        if model.lm_head.weight is model.shared.weight:
            model.decoder.final_layer_norm.weight /= 0.3
        model.lm_head.weight[1] *= 1.5


def make(kind: str, **changes: Any) -> Any:
    """A live model; `own-head` is a T5 whose head was untied from its table and changed."""
    if kind.removesuffix("-cut") in BART_KINDS:
        return make_bart(kind, **changes)
    base = "t5" if kind in ("own-head", "ragged") else kind
    config_class, model_class, keywords = KINDS[base]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = model_class(config_class(**{**SIZES, **keywords, **changes})).eval()
        if kind in ("t5-v1.1", "mt5"):
            model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) / 2)
        if kind == "own-head":
            untie(model)
            with torch.no_grad():
                model.lm_head.weight += torch.randn_like(model.lm_head.weight) / 2
        enliven(model)
        if not model.config.is_gated_act:
            walk(model)
    return model


def walk(model: Any) -> None:
    """Let a T5 with a ReLU go from token to token along a rotation, where a random one repeats its last token."""
    table, dense = model.shared.weight, model.decoder.block[-1].layer[-1].DenseReluDense
    size = table.shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(size, size))
    place = 2 * torch.randn(size)
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():
            if name.endswith("o.weight"):
                parameter *= 0.3
        for token in torch.randperm(len(table)):
            table[token] = place
            place = rotation @ place
        if model.lm_head.weight is table:
            model.decoder.final_layer_norm.weight *= 0.15
        dense.wi.weight[: 2 * size] = torch.cat([rotation, -rotation])  # relu(x) - relu(-x) = x
        dense.wo.weight[:, : 2 * size] = 6 * torch.cat([torch.eye(size), -torch.eye(size)], 1)


def make_bart(kind: str, **changes: Any) -> Any:
    """A live BART or kin of it, whose biases and norms all do something; `KIND-cut` is narrower in every way."""
    if kind.endswith("-cut"):
        return _cut(make_bart(kind.removesuffix("-cut")))
    config_class, model_class, keywords = BART_KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = model_class(config_class(**{**BART_SIZES, **keywords, **changes})).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.data.uniform_(0.5, 1.5)
            elif parameter.requires_grad:  # not the waves that mark positions
                parameter.data.normal_(0, 0.5 if "encoder_attn" in name else 0.25)
        model.final_logits_bias.normal_()
    return model


def _cut(model: Any) -> Any:
    """Take half the heads, a quarter of the neurons and hidden dimensions, and a layer from each stack."""
    anatomy = anatomy_of(model)
    masks = MaskSet.empty(anatomy.fingerprint())
    for unit, sparsity in (("head", 0.5), ("ffn_neuron", 0.25), ("hidden_dim", 0.25), ("layer", 0.34)):
        found = prune_units(model, anatomy, places(anatomy, unit), already=masks, sparsity=sparsity, score="l2_norm")
        masks = MaskSet({**masks.masks, **found}, dict.fromkeys({**masks.masks, **found}, "hold"), masks.owner)
    return cut(model, masks, remainder(anatomy, masks)).model


def write(model: Any, folder: Path) -> Path:
    """Save a model as the library saves it."""
    save_plain(model, tokenizer(), folder, masks=MaskSet.empty())
    return folder


def as_on_the_hub(folder: Path) -> Path:
    """Leave out what older writers did not know."""
    raw = read_json(folder / "config.json")
    raw.pop("scale_decoder_outputs", None)
    write_json(folder / "config.json", raw)
    return folder
