"""Models whose widths the configurations of transformers cannot say: layers that differ, or heads of another size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import WIDTHS, Family, Rule, Widths, expected
from secateur.errors import AnatomyError
from secateur.recipe.names import Stack

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


def _attentions(family: Family) -> dict[str, Rule]:
    """List every attention's query, which its module's name is read off, by "STACK.ROLE"."""
    return {f"{stack}.{rule.role}": rule for rule in family.rules if rule.part == "q" for stack in rule.stacks}


def _check(widths: Widths, config: Any, family: Family) -> None:
    """Refuse widths that do not say how wide each layer is."""
    layers = {stack: getattr(config, attribute) for stack, attribute in family.num_layers.items()}
    faults = [
        f"config.json: {WIDTHS} is damaged: it must tell of {layers[_stack(key)]} {_stack(key)} layers under {key}. "
        "Cut again."
        for key in _attentions(family)
        if len(widths.heads.get(key, ())) != layers[_stack(key)] or not all(widths.heads[key])
    ]
    faults += [
        f"config.json: {WIDTHS} is damaged: it must tell of {number} {stack} layers under neurons. Cut again."
        for stack, number in layers.items()
        if len(widths.neurons.get(stack, ())) != number
    ]
    if faults:
        raise AnatomyError(faults)


def _stack(key: str) -> Stack:
    return "encoder" if key.startswith("encoder.") else "decoder"


def shape_ragged(model: nn.Module) -> None:
    """Give every layer of a freshly made model the width that its configuration says; plain models are left alone.

    Args:
        model: of one of our families, its weights about to be loaded; changed in place, the tensors that change shape
            become zeros.

    Raises:
        AnatomyError: the configuration's widths are damaged.
    """
    config: Any = model.config
    widths = Widths.of(config)
    if widths is None:
        return
    family = FAMILIES[config.model_type]
    _check(widths, config, family)
    for path, item in expected(family, config).items():
        name, _, kind = path.rpartition(".")
        if kind == "weight" and model.get_parameter(path).shape != item.shape:
            _resize(model.get_submodule(name), item.shape)
    for key, rule in _attentions(family).items():
        for layer, heads in enumerate(widths.heads[key]):
            query = rule.path.format(stack=_stack(key), layer=layer)
            attention = model.get_submodule(query.rpartition(".")[0].rpartition(".")[0])
            _tell(attention, family, num_heads=len(heads), head_size=widths.head_sizes.get(_stack(key)))
            if family.shares_bias and rule.role == "self_attention":
                _become(attention, _SharedBias)
                attention.bias_columns = list(heads)  # type: ignore[assignment]  # no tensor
            elif family.shares_bias:
                _become(attention, _NoBias)
    for module in model.modules():
        if widths.embed_scale is not None and hasattr(module, "embed_scale"):
            module.embed_scale = widths.embed_scale  # type: ignore[assignment]  # no tensor


def _tell(attention: Any, family: Family, *, num_heads: int, head_size: int | None) -> None:
    """Tell an attention how many heads it has, and how large they are."""
    names = family.attention
    size = attention.q.out_features // num_heads if head_size is None else head_size
    told = {"num_heads": num_heads, "all_heads": num_heads * size, "head_size": size}
    for name, attribute in names.items():
        setattr(attention, attribute, told[name])
    if "head_size" in names:
        attention.scaling = size**-0.5


def _resize(module: nn.Module, shape: tuple[int, ...]) -> None:
    """Give a linear layer or an embedding another shape, filled with zeros."""
    old: Any = module
    rows, columns = shape
    old.weight = nn.Parameter(torch.zeros(rows, columns, dtype=old.weight.dtype, device=old.weight.device))
    if isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = rows, columns
        return
    assert isinstance(module, nn.Linear)
    module.in_features, module.out_features = columns, rows
    if module.bias is not None:
        module.bias = nn.Parameter(torch.zeros(rows, dtype=old.weight.dtype, device=old.weight.device))
