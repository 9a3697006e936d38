"""Encoder-decoders after BART: BART, mBART, Marian, Pegasus. Data only.

Source: Lewis et al. 2020, arXiv:1910.13461 (BART); Liu et al. 2020, arXiv:2001.08210 (mBART); Junczys-Dowmunt et al.
2018, arXiv:1804.00344 (Marian); Zhang et al. 2020, arXiv:1912.08777 (Pegasus); names and shapes as in transformers'
modeling_bart.py, modeling_mbart.py, modeling_marian.py, modeling_pegasus.py.
"""

from __future__ import annotations

from dataclasses import replace

from secateur.anatomy.family import Family, Only, Rule
from secateur.recipe.names import Stack

_BOTH: tuple[Stack, ...] = ("encoder", "decoder")
_DEC: tuple[Stack, ...] = ("decoder",)
_HIDDEN = ("d_model",)
_LAYER = "model.{stack}.layers.{layer}"
_INTO_HEADS = ("all_heads", "d_model")
_OUT_OF_HEADS = ("d_model", "all_heads")
_TABLE = ("vocab_size", "d_model")

_TABLES = (
    Rule("model.shared.weight", "embedding", "table", _TABLE),
    Rule("model.{stack}.embed_tokens.weight", "embedding", "table", _TABLE, _BOTH),
    Rule("model.{stack}.embed_positions.weight", "position_embedding", "positions", ("positions", "d_model"), _BOTH),
    Rule("lm_head.weight", "lm_head", "head", _TABLE),
)
_LAYERS = (
    Rule(f"{_LAYER}.self_attn.q_proj.weight", "self_attention", "q", _INTO_HEADS, _BOTH),
    Rule(f"{_LAYER}.self_attn.q_proj.bias", "self_attention", "q_bias", ("all_heads",), _BOTH),
    Rule(f"{_LAYER}.self_attn.k_proj.weight", "self_attention", "k", _INTO_HEADS, _BOTH),
    Rule(f"{_LAYER}.self_attn.k_proj.bias", "self_attention", "k_bias", ("all_heads",), _BOTH),
    Rule(f"{_LAYER}.self_attn.v_proj.weight", "self_attention", "v", _INTO_HEADS, _BOTH),
    Rule(f"{_LAYER}.self_attn.v_proj.bias", "self_attention", "v_bias", ("all_heads",), _BOTH),
    Rule(f"{_LAYER}.self_attn.out_proj.weight", "self_attention", "o", _OUT_OF_HEADS, _BOTH),
    Rule(f"{_LAYER}.self_attn.out_proj.bias", "self_attention", "o_bias", _HIDDEN, _BOTH),
    Rule(f"{_LAYER}.self_attn_layer_norm.weight", "norm", "norm", _HIDDEN, _BOTH),
    Rule(f"{_LAYER}.self_attn_layer_norm.bias", "norm", "norm_bias", _HIDDEN, _BOTH),
    Rule(f"{_LAYER}.encoder_attn.q_proj.weight", "cross_attention", "q", _INTO_HEADS, _DEC),
    Rule(f"{_LAYER}.encoder_attn.q_proj.bias", "cross_attention", "q_bias", ("all_heads",), _DEC),
    Rule(f"{_LAYER}.encoder_attn.k_proj.weight", "cross_attention", "k", _INTO_HEADS, _DEC),
    Rule(f"{_LAYER}.encoder_attn.k_proj.bias", "cross_attention", "k_bias", ("all_heads",), _DEC),
    Rule(f"{_LAYER}.encoder_attn.v_proj.weight", "cross_attention", "v", _INTO_HEADS, _DEC),
    Rule(f"{_LAYER}.encoder_attn.v_proj.bias", "cross_attention", "v_bias", ("all_heads",), _DEC),
    Rule(f"{_LAYER}.encoder_attn.out_proj.weight", "cross_attention", "o", _OUT_OF_HEADS, _DEC),
    Rule(f"{_LAYER}.encoder_attn.out_proj.bias", "cross_attention", "o_bias", _HIDDEN, _DEC),
    Rule(f"{_LAYER}.encoder_attn_layer_norm.weight", "norm", "norm", _HIDDEN, _DEC),
    Rule(f"{_LAYER}.encoder_attn_layer_norm.bias", "norm", "norm_bias", _HIDDEN, _DEC),
    Rule(f"{_LAYER}.fc1.weight", "feed_forward", "wi", ("d_ff", "d_model"), _BOTH),
    Rule(f"{_LAYER}.fc1.bias", "feed_forward", "wi_bias", ("d_ff",), _BOTH),
    Rule(f"{_LAYER}.fc2.weight", "feed_forward", "wo", ("d_model", "d_ff"), _BOTH),
    Rule(f"{_LAYER}.fc2.bias", "feed_forward", "wo_bias", _HIDDEN, _BOTH),
    Rule(f"{_LAYER}.final_layer_norm.weight", "norm", "norm", _HIDDEN, _BOTH),
    Rule(f"{_LAYER}.final_layer_norm.bias", "norm", "norm_bias", _HIDDEN, _BOTH),
)
_NORMED_EMBEDDINGS = (
    Rule("model.{stack}.layernorm_embedding.weight", "norm", "norm", _HIDDEN, _BOTH),
    Rule("model.{stack}.layernorm_embedding.bias", "norm", "norm_bias", _HIDDEN, _BOTH),
)
_LAST_NORMS = (
    Rule("model.{stack}.layer_norm.weight", "norm", "norm", _HIDDEN, _BOTH),
    Rule("model.{stack}.layer_norm.bias", "norm", "norm_bias", _HIDDEN, _BOTH),
)
_ONE_TABLE = Only(
    "tie_word_embeddings", (True,), "its stacks would have a table each, and here they share one with the head."
)
_DECODER_ALONE = Only("is_decoder", (False, None), "a decoder alone is another kind of model.")

BART = Family(
    model_type="bart",
    model_class="BartForConditionalGeneration",
    starts=("BartModel",),
    sizes={
        "d_model": ("d_model",),
        "d_ff": ("{stack}_ffn_dim",),
        "num_heads": ("{stack}_attention_heads",),
        "all_heads": ("d_model",),
        "positions": ("max_position_embeddings",),
        "vocab_size": ("vocab_size",),
    },
    units={
        "all_heads": ("head", ("d_model", "{stack}_attention_heads")),
        "d_ff": ("ffn_neuron", None),
        "d_model": ("hidden_dim", None),
        "vocab_size": ("vocab_row", None),
    },
    extra={"positions": 2},  # the first two rows belong to no position
    num_layers={"encoder": "encoder_layers", "decoder": "decoder_layers"},
    rules=(*_TABLES, *_LAYERS, *_NORMED_EMBEDDINGS),
    layer_norm=True,
    norm_last=True,
    attention={"num_heads": "num_heads", "head_size": "head_dim"},
    row_buffers=("final_logits_bias",),
    only=(_ONE_TABLE, _DECODER_ALONE),
    tie_covers_stacks=True,
)
MBART = replace(
    BART,
    model_type="mbart",
    model_class="MBartForConditionalGeneration",
    starts=("MBartModel",),
    rules=(*_TABLES, *_LAYERS, *_NORMED_EMBEDDINGS, *_LAST_NORMS),
    norm_last=False,
    only=(
        _ONE_TABLE,
        _DECODER_ALONE,
        Only(
            "decoder_start_token_id",
            (),
            "an output starts with the token of its language. Set it in config.json to that of the target's.",
        ),
    ),
)
MARIAN = replace(
    BART,
    model_type="marian",
    model_class="MarianMTModel",
    starts=("MarianModel",),
    extra={},
    rules=(*_TABLES, *_LAYERS),
    mirrors={"decoder_vocab_size": "vocab_size"},
    only=(
        _ONE_TABLE,
        _DECODER_ALONE,
        Only(
            "share_encoder_decoder_embeddings", (True,), "its stacks have a vocabulary each, and here they share one."
        ),
    ),
)
PEGASUS = replace(
    BART,
    model_type="pegasus",
    model_class="PegasusForConditionalGeneration",
    starts=("PegasusModel",),
    extra={},
    rules=(*_TABLES, *_LAYERS, *_LAST_NORMS),
    norm_last=False,
)
