"""The T5 family: T5 v1.0, T5 v1.1 and Flan-T5 (gated feed-forward, own head), mT5 and UMT5. Data only.

Source: Raffel et al. 2020, arXiv:1910.10683 (T5); Xue et al. 2021, arXiv:2010.11934 (mT5); Chung et al. 2023,
arXiv:2304.09151 (UMT5); names and shapes as in transformers' modeling_t5.py, modeling_mt5.py, modeling_umt5.py.
"""

from __future__ import annotations

from dataclasses import replace

from secateur.anatomy.family import Family, Rule
from secateur.recipe.names import Stack

_BOTH: tuple[Stack, ...] = ("encoder", "decoder")
_ENC: tuple[Stack, ...] = ("encoder",)
_DEC: tuple[Stack, ...] = ("decoder",)
_INTO_HEADS = ("all_heads", "d_model")
_OUT_OF_HEADS = ("d_model", "all_heads")
_UP = ("d_ff", "d_model")
_DOWN = ("d_model", "d_ff")
_TABLE = ("vocab_size", "d_model")
_PLAIN = ("is_gated_act", False)
_GATED = ("is_gated_act", True)

# One row per parameter. Self-attention is sublayer 0 everywhere; the decoder has cross-attention as sublayer 1, so that
# its feed-forward is sublayer 2 where the encoder's is 1. The name DenseReluDense stays when the activation is another.
_RULES = (
    Rule("shared.weight", "embedding", "table", _TABLE),
    Rule("{stack}.embed_tokens.weight", "embedding", "table", _TABLE, _BOTH),
    Rule("lm_head.weight", "lm_head", "head", _TABLE),
    Rule("{stack}.block.{layer}.layer.0.SelfAttention.q.weight", "self_attention", "q", _INTO_HEADS, _BOTH),
    Rule("{stack}.block.{layer}.layer.0.SelfAttention.k.weight", "self_attention", "k", _INTO_HEADS, _BOTH),
    Rule("{stack}.block.{layer}.layer.0.SelfAttention.v.weight", "self_attention", "v", _INTO_HEADS, _BOTH),
    Rule("{stack}.block.{layer}.layer.0.SelfAttention.o.weight", "self_attention", "o", _OUT_OF_HEADS, _BOTH),
    Rule("{stack}.block.{layer}.layer.1.EncDecAttention.q.weight", "cross_attention", "q", _INTO_HEADS, _DEC),
    Rule("{stack}.block.{layer}.layer.1.EncDecAttention.k.weight", "cross_attention", "k", _INTO_HEADS, _DEC),
    Rule("{stack}.block.{layer}.layer.1.EncDecAttention.v.weight", "cross_attention", "v", _INTO_HEADS, _DEC),
    Rule("{stack}.block.{layer}.layer.1.EncDecAttention.o.weight", "cross_attention", "o", _OUT_OF_HEADS, _DEC),
    Rule("{stack}.block.{layer}.layer.1.DenseReluDense.wi.weight", "feed_forward", "wi", _UP, _ENC, when=_PLAIN),
    Rule("{stack}.block.{layer}.layer.1.DenseReluDense.wi_0.weight", "feed_forward", "wi_0", _UP, _ENC, when=_GATED),
    Rule("{stack}.block.{layer}.layer.1.DenseReluDense.wi_1.weight", "feed_forward", "wi_1", _UP, _ENC, when=_GATED),
    Rule("{stack}.block.{layer}.layer.1.DenseReluDense.wo.weight", "feed_forward", "wo", _DOWN, _ENC),
    Rule("{stack}.block.{layer}.layer.2.DenseReluDense.wi.weight", "feed_forward", "wi", _UP, _DEC, when=_PLAIN),
    Rule("{stack}.block.{layer}.layer.2.DenseReluDense.wi_0.weight", "feed_forward", "wi_0", _UP, _DEC, when=_GATED),
    Rule("{stack}.block.{layer}.layer.2.DenseReluDense.wi_1.weight", "feed_forward", "wi_1", _UP, _DEC, when=_GATED),
    Rule("{stack}.block.{layer}.layer.2.DenseReluDense.wo.weight", "feed_forward", "wo", _DOWN, _DEC),
    Rule("{stack}.block.{layer}.layer.0.layer_norm.weight", "norm", "norm", ("d_model",), _BOTH),
    Rule("{stack}.block.{layer}.layer.1.layer_norm.weight", "norm", "norm", ("d_model",), _BOTH),
    Rule("{stack}.block.{layer}.layer.2.layer_norm.weight", "norm", "norm", ("d_model",), _DEC),
    Rule("{stack}.final_layer_norm.weight", "norm", "norm", ("d_model",), _BOTH),
)
_POSITION_BIAS = Rule(
    "{stack}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight",
    "position_bias",
    "bias",
    ("num_buckets", "num_heads"),
    _BOTH,
    first_layer_only=True,
)

T5 = Family(
    model_type="t5",
    model_class="T5ForConditionalGeneration",
    sizes={
        "d_model": ("d_model",),
        "d_ff": ("d_ff",),
        "num_heads": ("num_heads",),
        "all_heads": ("num_heads", "d_kv"),
        "num_buckets": ("relative_attention_num_buckets",),
        "vocab_size": ("vocab_size",),
    },
    units={
        "all_heads": ("head", "d_kv"),
        "num_heads": ("head", None),
        "d_ff": ("ffn_neuron", None),
        "d_model": ("hidden_dim", None),
        "vocab_size": ("vocab_row", None),
    },
    num_layers={"encoder": "num_layers", "decoder": "num_decoder_layers"},
    rules=(*_RULES, _POSITION_BIAS),
    head_scaled_when="scale_decoder_outputs",
    attention={"num_heads": "n_heads", "all_heads": "inner_dim"},
)
MT5 = replace(T5, model_type="mt5", model_class="MT5ForConditionalGeneration", head_scaled_when=None)
UMT5 = replace(
    T5,
    model_type="umt5",
    model_class="UMT5ForConditionalGeneration",
    # Every layer has its own position bias, where T5 makes one per stack.
    rules=(*_RULES, replace(_POSITION_BIAS, first_layer_only=False)),
    # The class forces this attribute to true when it reads a file, whatever the file says: always scaled, unless the
    # attribute is changed afterwards.
    head_scaled_when="tie_word_embeddings",
)
