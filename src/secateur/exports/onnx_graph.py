"""T5, mT5 and UMT5 as two ONNX graphs: the encoder, and one step of the decoder.

We write the nodes ourselves, where tracing the model of transformers would give three times as many: position biases
are read from a table of distances, the residual sum and the norm are one node, q, k and v one matrix. Letters in
shapes: B sources, S source tokens, G outputs written per source (beams), R = B x G rows, P tokens written so far,
D d_model, H heads, K d_kv, V vocabulary.

The encoder gives the cross-attention keys and values of every decoder layer, once per source: the G rows of one source
ride on the axis of the queries, so that beams copy nothing. A step takes one token per row and the keys and values of
the tokens before it, and gives logits and the longer keys and values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from secateur.anatomy.check import head_scale
from secateur.anatomy.families import FAMILIES
from secateur.exports.onnx_nodes import CONTRIB, DATA, Array, Graph, Weights, as_array

ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
_NEVER = np.finfo(np.float32).min  # added to the scores of places that must not be seen


def _by_distance(attention: Any, *, both_ways: bool) -> Array:
    """Spell a position bias out: (H, distances), from -M (keys before the query) to M, or from 0 back to M.

    Buckets no longer change from the largest distance M on, so that a clipped distance serves any length.
    """
    largest = attention.relative_attention_max_distance
    distances = torch.arange(-largest, largest + 1) if both_ways else -torch.arange(largest + 1)
    buckets = T5Attention._relative_position_bucket(  # mT5's and UMT5's compute the same
        distances,
        bidirectional=both_ways,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=largest,
    )
    return as_array(attention.relative_attention_bias.weight[buckets].T)


class _Biases:
    """The position biases of a stack's layers: made by the first layer for all, or (UMT5) by each for itself.

    Layers of a ragged model use some columns of the first layer's table.
    """

    def __init__(self, graph: Graph, stack: str, distances: str, *, both_ways: bool, mask: str | None = None) -> None:
        self._graph, self._stack, self._distances = graph, stack, distances
        self._both_ways, self._mask = both_ways, mask
        self._table: tuple[int, Array] | None = None
        self._made: dict[tuple[int, tuple[int, ...]], str] = {}

    def of(self, layer: int, attention: Any) -> str:
        """A layer's bias, the mask added: (1 or B, H, queries, keys)."""
        graph = self._graph
        if attention.has_relative_attention_bias:
            self._table = layer, _by_distance(attention, both_ways=self._both_ways)
        assert self._table is not None  # the first layer of every stack has one
        owner, table = self._table
        columns = tuple(getattr(attention, "bias_columns", range(attention.n_heads)))
        if (owner, columns) not in self._made:
            own = table if columns == tuple(range(len(table))) else table[list(columns)]
            name = graph.constant(f"{self._stack}.{layer}.bias", own)
            bias = graph.op("Unsqueeze", [graph.op("Gather", [name, self._distances], axis=1), graph.ints(0)])
            self._made[owner, columns] = bias if self._mask is None else graph.op("Add", [bias, self._mask])
        return self._made[owner, columns]


def _attend(graph: Graph, query: str, key: str, value: str, bias: str, *, transposed: bool) -> str:
    """Softmax(query key + bias) value; `transposed`: the keys are stored as (B, H, K, S)."""
    if transposed:
        scores = graph.op("MatMul", [query, key])
    else:
        scores = graph.op("FusedMatMul", [query, key], domain=CONTRIB, transB=1)
    seen = graph.op("Softmax", [graph.op("Add", [scores, bias])], axis=-1)
    return graph.op("MatMul", [seen, value])


def _joined(*linears: Any) -> Array:
    return as_array(torch.cat([linear.weight for linear in linears]))


def _encoder(weights: Weights, model: Any, *, int8: bool) -> Graph:
    """Source ids (B, S) and mask (B, S; 1 = token) to the keys (B, H, K, S) and values (B, H, S, K) of the decoder."""
    graph, config = Graph(weights, model.config, int8=int8), model.config
    ids = graph.input("input_ids", ["B", "S"], ids=True)
    mask = graph.input("attention_mask", ["B", "S"])
    hidden_places = graph.op("Mul", [graph.op("Sub", [graph.scalar(1.0), mask]), graph.scalar(float(_NEVER))])
    mask = graph.op("Unsqueeze", [hidden_places, graph.ints(1, 2)])
    places = graph.op("Range", [graph.whole(0), graph.number(graph.size(ids, 1)), graph.whole(1)])
    distances = graph.op(
        "Sub", [graph.op("Unsqueeze", [places, graph.ints(0)]), graph.op("Unsqueeze", [places, graph.ints(1)])]
    )
    largest = config.relative_attention_max_distance
    clipped = graph.op("Clip", [distances, graph.whole(-largest), graph.whole(largest)])
    biases = _Biases(graph, "encoder", graph.op("Add", [clipped, graph.whole(largest)]), both_ways=True, mask=mask)

    residual, added = graph.embed(ids, "table", as_array(model.shared.weight)), None
    for layer, block in enumerate(model.encoder.block):
        name, attention = f"encoder.{layer}", block.layer[0].SelfAttention
        normed, residual = graph.norm(residual, added, f"{name}.norm.0", as_array(block.layer[0].layer_norm.weight))
        joined = graph.linear(normed, f"{name}.qkv", _joined(attention.q, attention.k, attention.v))
        parts = graph.op("Split", [joined], outputs=3, axis=-1, num_outputs=3)
        query, key, value = (graph.heads(part, attention.n_heads) for part in parts)
        mixed = _attend(graph, query, key, value, biases.of(layer, attention), transposed=False)
        mixed = graph.op(
            "Reshape", [graph.op("Transpose", [mixed], perm=[0, 2, 1, 3]), graph.ints(0, -1, attention.inner_dim)]
        )
        added = graph.linear(mixed, f"{name}.o", as_array(attention.o.weight))
        normed, residual = graph.norm(residual, added, f"{name}.norm.1", as_array(block.layer[1].layer_norm.weight))
        added = graph.feed_forward(normed, name, block.layer[1].DenseReluDense)
    normed, _ = graph.norm(residual, added, "encoder.norm", as_array(model.encoder.final_layer_norm.weight))

    graph.output("cross_mask", mask, ["B", 1, 1, "S"])
    for layer, block in enumerate(model.decoder.block):
        attention = block.layer[1].EncDecAttention
        heads, width = attention.n_heads, config.d_kv
        joined = graph.linear(normed, f"decoder.{layer}.cross.kv", _joined(attention.k, attention.v))
        key, value = graph.op("Split", [joined], outputs=2, axis=-1, num_outputs=2)
        key = graph.op("Reshape", [key, graph.ints(0, -1, heads, width)])
        graph.output(f"cross_key_{layer}", graph.op("Transpose", [key], perm=[0, 2, 3, 1]), ["B", heads, width, "S"])
        graph.output(f"cross_value_{layer}", graph.heads(value, heads), ["B", heads, "S", width])
    return graph


def _decoder(weights: Weights, model: Any, *, int8: bool) -> Graph:
    """One token per row (R,), what the encoder gave, and the keys and values before it, to logits (R, V)."""
    graph, config = Graph(weights, model.config, int8=int8), model.config
    width = config.d_kv
    ids = graph.input("tokens", ["R"], ids=True)
    mask = graph.input("cross_mask", ["B", 1, 1, "S"])
    num_sources = graph.size(mask, 0)
    residual, added = graph.embed(ids, "table", as_array(model.shared.weight)), None
    biases = None
    for layer, block in enumerate(model.decoder.block):
        name, attention = f"decoder.{layer}", block.layer[0].SelfAttention
        heads = attention.n_heads
        past = [graph.input(f"past_{part}_{layer}", ["R", heads, "P", width]) for part in ("key", "value")]
        if biases is None:
            before = graph.number(graph.size(past[0], 2))
            distances = graph.op("Range", [before, graph.whole(-1), graph.whole(-1)])  # P, ..., 1, 0
            clipped = graph.op("Clip", [distances, "", graph.whole(config.relative_attention_max_distance)])
            biases = _Biases(graph, "decoder", graph.op("Unsqueeze", [clipped, graph.ints(0)]), both_ways=False)
        normed, residual = graph.norm(residual, added, f"{name}.norm.0", as_array(block.layer[0].layer_norm.weight))
        joined = graph.linear(normed, f"{name}.qkv", _joined(attention.q, attention.k, attention.v))
        joined = graph.op("Reshape", [joined, graph.ints(-1, 3 * heads, 1, width)])
        query, *new = graph.op("Split", [joined], outputs=3, axis=1, num_outputs=3)
        key, value = (graph.op("Concat", [old, more], axis=2) for old, more in zip(past, new, strict=True))
        mixed = _attend(graph, query, key, value, biases.of(layer, attention), transposed=False)
        mixed = graph.op("Reshape", [mixed, graph.ints(-1, attention.inner_dim)])
        added = graph.linear(mixed, f"{name}.o", as_array(attention.o.weight))
        for part, whole in (("key", key), ("value", value)):
            graph.output(f"present_{part}_{layer}", whole, ["R", heads, "P + 1", width])

        attention = block.layer[1].EncDecAttention
        heads = attention.n_heads
        normed, residual = graph.norm(residual, added, f"{name}.norm.1", as_array(block.layer[1].layer_norm.weight))
        query = graph.linear(normed, f"{name}.cross.q", as_array(attention.q.weight))
        shape = graph.op("Concat", [num_sources, graph.ints(-1, heads, width)], axis=0)
        query = graph.op("Transpose", [graph.op("Reshape", [query, shape])], perm=[0, 2, 1, 3])  # (B, H, G, K)
        key = graph.input(f"cross_key_{layer}", ["B", heads, width, "S"])
        value = graph.input(f"cross_value_{layer}", ["B", heads, "S", width])
        mixed = _attend(graph, query, key, value, mask, transposed=True)
        mixed = graph.op("Transpose", [mixed], perm=[0, 2, 1, 3])
        mixed = graph.op("Reshape", [mixed, graph.ints(-1, attention.inner_dim)])
        added = graph.linear(mixed, f"{name}.cross.o", as_array(attention.o.weight))
        normed, residual = graph.norm(residual, added, f"{name}.norm.2", as_array(block.layer[2].layer_norm.weight))
        added = graph.feed_forward(normed, name, block.layer[2].DenseReluDense)
    # What scales the decoder's output before the head goes into the norm before it.
    scaled = as_array(model.decoder.final_layer_norm.weight) * head_scale(FAMILIES[config.model_type], config)
    normed, _ = graph.norm(residual, added, "decoder.norm", scaled.astype(np.float32))
    tied = model.lm_head.weight is model.shared.weight
    logits = graph.linear(normed, "table" if tied else "head", as_array(model.lm_head.weight), shared=True)
    graph.output("logits", logits, ["R", config.vocab_size])
    return graph


def write_graphs(model: Any, place: Path, *, int8: bool) -> list[str]:
    """Write a model as two graphs and one file of tensors.

    Args:
        model: a live T5, mT5 or UMT5 of transformers, plain or ragged, on the CPU.
        place: a folder.
        int8: store and multiply matrices as int8, else fp32.

    Returns:
        The names of the three files.

    Raises:
        ExportError: the onnx package is missing.
    """
    with (place / DATA).open("wb") as stream, torch.no_grad():
        weights = Weights(stream)
        _encoder(weights, model, int8=int8).save(place / ENCODER)
        _decoder(weights, model, int8=int8).save(place / DECODER)
    return [DATA, ENCODER, DECODER]
