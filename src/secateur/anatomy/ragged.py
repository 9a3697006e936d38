"""Ragged models: layers of one stack that differ in width, which the configurations of transformers cannot say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import WIDTHS, Widths
from secateur.errors import AnatomyError

_CLASSES: dict[tuple[type, str], type] = {}


# Both classes below are mixed into transformers' attention, whose methods they call: super() is not object there.


class _SharedBias:
    """Self-attention that uses some columns of the position bias that its stack's first layer makes."""

    bias_columns: list[int]
    _whole: Tensor | None = None

    def compute_bias(self, *args: Any, **kwargs: Any) -> Tensor:
        whole: Tensor = super().compute_bias(*args, **kwargs)  # type: ignore[misc]  # a mixin: the class beside it has the method
        self._whole = whole
        return whole[:, self.bias_columns]

    def forward(self, hidden_states: Tensor, *args: Any, position_bias: Tensor | None = None, **kwargs: Any) -> Any:
        own = None if position_bias is None else position_bias[:, self.bias_columns]
        outputs = super().forward(hidden_states, *args, position_bias=own, **kwargs)  # type: ignore[misc]  # a mixin: the class beside it has the method
        whole, self._whole = (self._whole if position_bias is None else position_bias), None
        return (outputs[0], whole, *outputs[2:])


class _NoBias:
    """Cross-attention, which has no position bias: the zeros it makes fit its own heads only, so they go no further."""

    def forward(self, hidden_states: Tensor, *args: Any, position_bias: Tensor | None = None, **kwargs: Any) -> Any:
        outputs = super().forward(hidden_states, *args, position_bias=None, **kwargs)  # type: ignore[misc]  # a mixin: the class beside it has the method
        return (outputs[0], None, *outputs[2:])


def _become(module: nn.Module, mixin: type) -> None:
    kind = type(module)
    key = (kind, mixin.__name__)
    if key not in _CLASSES:
        _CLASSES[key] = type(f"Ragged{kind.__name__}", (mixin, kind), {})
    module.__class__ = _CLASSES[key]


def _resize(linear: nn.Linear, *, inputs: int | None = None, outputs: int | None = None) -> nn.Linear:
    weight = linear.weight
    rows, columns = outputs or weight.shape[0], inputs or weight.shape[1]
    new = nn.Linear(columns, rows, bias=False, device="meta")
    new.weight = nn.Parameter(torch.zeros(rows, columns, dtype=weight.dtype, device=weight.device))
    return new


def _check(widths: Widths, config: Any) -> None:
    """Refuse widths that do not say how wide each layer is."""
    layers = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    wanted = {
        "encoder.self_attention": "encoder",
        "decoder.self_attention": "decoder",
        "decoder.cross_attention": "decoder",
    }
    faults = [
        f"config.json: {WIDTHS} is damaged: it must tell of {layers[stack]} {stack} layers under {key}. Cut again."
        for key, stack in wanted.items()
        if len(widths.heads.get(key, ())) != layers[stack] or not all(widths.heads[key])
    ]
    faults += [
        f"config.json: {WIDTHS} is damaged: it must tell of {number} {stack} layers under neurons. Cut again."
        for stack, number in layers.items()
        if len(widths.neurons.get(stack, ())) != number
    ]
    if faults:
        raise AnatomyError(faults)


def shape_ragged(model: nn.Module) -> None:
    """Give every layer of a freshly made model the width that its configuration says; plain models are left alone.

    Args:
        model: a T5, mT5 or UMT5 of transformers, whose weights are about to be loaded; changed in place, the tensors
            that change shape become zeros.

    Raises:
        AnatomyError: the configuration's widths are damaged.
    """
    config: Any = model.config
    widths = Widths.of(config)
    if widths is None:
        return
    _check(widths, config)
    shared = FAMILIES[config.model_type].shares_bias
    for stack_name, neurons in widths.neurons.items():
        stack: Any = model.get_submodule(stack_name)
        for index, block in enumerate(stack.block):
            columns = widths.heads[f"{stack_name}.self_attention"][index]
            _narrow_attention(block.layer[0].SelfAttention, len(columns), config.d_kv)
            if shared:
                _become(block.layer[0].SelfAttention, _SharedBias)
                block.layer[0].SelfAttention.bias_columns = list(columns)
            if stack_name == "decoder":
                _narrow_attention(
                    block.layer[1].EncDecAttention, len(widths.heads["decoder.cross_attention"][index]), config.d_kv
                )
                if shared:
                    _become(block.layer[1].EncDecAttention, _NoBias)
            _narrow_feed_forward(block.layer[-1].DenseReluDense, neurons[index])
        _narrow_biases(stack, widths, stack_name, shared=shared)


def _narrow_attention(attention: Any, num_heads: int, d_kv: int) -> None:
    attention.n_heads, attention.inner_dim = num_heads, num_heads * d_kv
    for name in ("q", "k", "v"):
        setattr(attention, name, _resize(getattr(attention, name), outputs=attention.inner_dim))
    attention.o = _resize(attention.o, inputs=attention.inner_dim)


def _narrow_feed_forward(dense: Any, num_neurons: int) -> None:
    for name in ("wi", "wi_0", "wi_1"):
        if hasattr(dense, name):
            setattr(dense, name, _resize(getattr(dense, name), outputs=num_neurons))
    dense.wo = _resize(dense.wo, inputs=num_neurons)


def _narrow_biases(stack: Any, widths: Widths, stack_name: str, *, shared: bool) -> None:
    layers = widths.heads[f"{stack_name}.self_attention"]
    for index, block in enumerate(stack.block):
        attention = block.layer[0].SelfAttention
        if not attention.has_relative_attention_bias:
            continue
        used = [column for own in (layers if shared else layers[index : index + 1]) for column in own]
        table = attention.relative_attention_bias
        new = nn.Embedding(table.num_embeddings, max(used) + 1, device="meta")
        new.weight = nn.Parameter(
            torch.zeros(table.num_embeddings, max(used) + 1, dtype=table.weight.dtype, device=table.weight.device)
        )
        attention.relative_attention_bias = new
