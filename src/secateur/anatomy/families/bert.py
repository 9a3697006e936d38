"""Encoders that classify: BERT (MiniLM is one), RoBERTa, DistilBERT. Data only.

Source: Devlin et al. 2019, arXiv:1810.04805 (BERT); Liu et al. 2019, arXiv:1907.11692 (RoBERTa); Sanh et al. 2019,
arXiv:1910.01108 (DistilBERT); names and shapes as in transformers' modeling_bert.py, modeling_roberta.py,
modeling_distilbert.py.
"""

from __future__ import annotations

from dataclasses import replace

from secateur.anatomy.family import Family, Only, Rule
from secateur.recipe.names import Stack

_ENC: tuple[Stack, ...] = ("encoder",)
_HIDDEN = ("d_model",)
_SQUARE = ("d_model", "d_model")
_WRITES = "a model that writes text with these layers is another kind; of this family only encoders are understood."
_LAYER = "bert.encoder.layer.{layer}"

# One row per parameter. Query, key and value lie side by side by heads; what comes out of a pooler is as wide as the
# residual stream because one attribute of the configuration says both, so that a hidden dimension takes its row along.
_EMBEDDINGS = (
    Rule("bert.embeddings.word_embeddings.weight", "embedding", "table", ("vocab_size", "d_model")),
    Rule("bert.embeddings.token_type_embeddings.weight", "embedding", "token_types", ("token_types", "d_model")),
    Rule("bert.embeddings.position_embeddings.weight", "position_embedding", "positions", ("positions", "d_model")),
    Rule("bert.embeddings.LayerNorm.weight", "norm", "norm", _HIDDEN),
    Rule("bert.embeddings.LayerNorm.bias", "norm", "norm_bias", _HIDDEN),
)
_LAYERS = (
    Rule(f"{_LAYER}.attention.self.query.weight", "self_attention", "q", ("all_heads", "d_model"), _ENC),
    Rule(f"{_LAYER}.attention.self.query.bias", "self_attention", "q_bias", ("all_heads",), _ENC),
    Rule(f"{_LAYER}.attention.self.key.weight", "self_attention", "k", ("all_heads", "d_model"), _ENC),
    Rule(f"{_LAYER}.attention.self.key.bias", "self_attention", "k_bias", ("all_heads",), _ENC),
    Rule(f"{_LAYER}.attention.self.value.weight", "self_attention", "v", ("all_heads", "d_model"), _ENC),
    Rule(f"{_LAYER}.attention.self.value.bias", "self_attention", "v_bias", ("all_heads",), _ENC),
    Rule(f"{_LAYER}.attention.output.dense.weight", "self_attention", "o", ("d_model", "all_heads"), _ENC),
    Rule(f"{_LAYER}.attention.output.dense.bias", "self_attention", "o_bias", _HIDDEN, _ENC),
    Rule(f"{_LAYER}.attention.output.LayerNorm.weight", "norm", "norm", _HIDDEN, _ENC),
    Rule(f"{_LAYER}.attention.output.LayerNorm.bias", "norm", "norm_bias", _HIDDEN, _ENC),
    Rule(f"{_LAYER}.intermediate.dense.weight", "feed_forward", "wi", ("d_ff", "d_model"), _ENC),
    Rule(f"{_LAYER}.intermediate.dense.bias", "feed_forward", "wi_bias", ("d_ff",), _ENC),
    Rule(f"{_LAYER}.output.dense.weight", "feed_forward", "wo", ("d_model", "d_ff"), _ENC),
    Rule(f"{_LAYER}.output.dense.bias", "feed_forward", "wo_bias", _HIDDEN, _ENC),
    Rule(f"{_LAYER}.output.LayerNorm.weight", "norm", "norm", _HIDDEN, _ENC),
    Rule(f"{_LAYER}.output.LayerNorm.bias", "norm", "norm_bias", _HIDDEN, _ENC),
)

BERT = Family(
    model_type="bert",
    model_class="BertForSequenceClassification",
    starts=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    sizes={
        "d_model": ("hidden_size",),
        "d_ff": ("intermediate_size",),
        "num_heads": ("num_attention_heads",),
        "all_heads": ("hidden_size",),
        "positions": ("max_position_embeddings",),
        "token_types": ("type_vocab_size",),
        "vocab_size": ("vocab_size",),
        "num_labels": ("num_labels",),
    },
    units={
        "all_heads": ("head", ("hidden_size", "num_attention_heads")),
        "d_ff": ("ffn_neuron", None),
        "d_model": ("hidden_dim", None),
        "vocab_size": ("vocab_row", None),
    },
    num_layers={"encoder": "num_hidden_layers"},
    layer_norm=True,
    norm_last=True,
    attention={
        "num_heads": "num_attention_heads",
        "all_heads": "all_head_size",
        "head_size": "attention_head_size",
    },
    only=(
        Only("is_decoder", (False, None), _WRITES),
        Only("add_cross_attention", (False, None), _WRITES),
        Only(
            "position_embedding_type",
            ("absolute", None),
            "other positions than absolute ones are left out by transformers 5 without a word, so its model would not "
            "be the one that was trained.",
        ),
    ),
    rules=(
        *_EMBEDDINGS,
        *_LAYERS,
        Rule("bert.pooler.dense.weight", "classifier", "pooler", _SQUARE),
        Rule("bert.pooler.dense.bias", "classifier", "pooler_bias", _HIDDEN),
        Rule("classifier.weight", "classifier", "classes", ("num_labels", "d_model")),
        Rule("classifier.bias", "classifier", "classes_bias", ("num_labels",)),
    ),
)

ROBERTA = replace(
    BERT,
    model_type="roberta",
    model_class="RobertaForSequenceClassification",
    starts=("RobertaModel", "RobertaForMaskedLM"),
    pad_shifts_positions=True,
    rules=(
        *(replace(rule, path=rule.path.replace("bert.", "roberta.", 1)) for rule in (*_EMBEDDINGS, *_LAYERS)),
        Rule("classifier.dense.weight", "classifier", "pooler", _SQUARE),
        Rule("classifier.dense.bias", "classifier", "pooler_bias", _HIDDEN),
        Rule("classifier.out_proj.weight", "classifier", "classes", ("num_labels", "d_model")),
        Rule("classifier.out_proj.bias", "classifier", "classes_bias", ("num_labels",)),
    ),
)

# BERT's name of a parameter -> DistilBERT's; it has neither token types nor a pooler of the encoder's own.
_DISTILLED = {
    "bert.embeddings.": "distilbert.embeddings.",
    "bert.encoder.": "distilbert.transformer.",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "}.output.dense": "}.ffn.lin2",
    "}.output.LayerNorm": "}.output_layer_norm",
}


def _distilled(path: str) -> str:
    for old, new in _DISTILLED.items():
        path = path.replace(old, new)
    return path


DISTILBERT = replace(
    BERT,
    model_type="distilbert",
    model_class="DistilBertForSequenceClassification",
    starts=("DistilBertModel", "DistilBertForMaskedLM"),
    sizes={
        "d_model": ("dim",),
        "d_ff": ("hidden_dim",),
        "num_heads": ("n_heads",),
        "all_heads": ("dim",),
        "positions": ("max_position_embeddings",),
        "vocab_size": ("vocab_size",),
        "num_labels": ("num_labels",),
    },
    units={**BERT.units, "all_heads": ("head", ("dim", "n_heads"))},
    num_layers={"encoder": "n_layers"},
    attention={"num_heads": "n_heads", "head_size": "attention_head_size"},
    rules=(
        *(replace(rule, path=_distilled(rule.path)) for rule in (*_EMBEDDINGS, *_LAYERS) if rule.part != "token_types"),
        Rule("pre_classifier.weight", "classifier", "pooler", _SQUARE),
        Rule("pre_classifier.bias", "classifier", "pooler_bias", _HIDDEN),
        Rule("classifier.weight", "classifier", "classes", ("num_labels", "d_model")),
        Rule("classifier.bias", "classifier", "classes_bias", ("num_labels",)),
    ),
)
