"""Gaps: what masks removed whole and zeros alone cannot express, so that the live model has to leave it out.

A LayerNorm subtracts the mean over all D dimensions and divides by their deviation: a hidden dimension that is 0
everywhere still counts in both. Where such dimensions are removed, norms are computed over those that stay. And where a
layer ends with a norm (BERT, BART), a layer of zeros is no identity, so it is passed by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.anatomy.families import FAMILIES
from secateur.anatomy.family import Family, expected, value
from secateur.errors import AnatomyError
from secateur.recipe.names import Stack

GAPS = "secateur_gaps"  # the key of config.json that says what a folder's model leaves out
_CLASSES: dict[type, type] = {}


@dataclass(frozen=True)
class Gaps:
    """What a model leaves out.

    Attributes:
        dims: the hidden dimensions that stay; None: all.
        layers: stack -> the layers that are passed by.
    """

    dims: tuple[int, ...] | None = None
    layers: Mapping[Stack, tuple[int, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.dims is not None or any(self.layers.values())

    @classmethod
    def of(cls, config: Any) -> Gaps:
        """Read them off a configuration.

        Args:
            config: with or without the key.

        Returns:
            The gaps; none for a plain configuration.

        Raises:
            AnatomyError: the key is there and holds something else.
        """
        raw = getattr(config, GAPS, None)
        if raw is None:
            return cls()
        try:
            dims = None if raw["dims"] is None else tuple(map(int, raw["dims"]))
            return cls(dims, {stack: tuple(map(int, layers)) for stack, layers in raw["layers"].items()})
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise AnatomyError([f"config.json: {GAPS} is damaged. Prune the model again."]) from error

    def as_json(self) -> dict[str, Any]:
        """The value that `of` reads."""
        layers = {stack: list(layers) for stack, layers in self.layers.items() if layers}
        return {"dims": None if self.dims is None else list(self.dims), "layers": layers}


class KeptNorm(nn.LayerNorm):
    """A LayerNorm over the dimensions that stay; it gives zeros in the others.

    It shares the Parameter objects of the norm it stands for, so optimizers and state-dict keys stay as they are.

    Args:
        norm: the norm to stand for, over D dimensions.
        dims: (d,), int64, the dimensions that stay.
    """

    dims: Tensor

    def __init__(self, norm: nn.LayerNorm, dims: Tensor) -> None:
        nn.Module.__init__(self)  # nn.LayerNorm's own would make parameters only to throw them away
        self.normalized_shape, self.eps, self.elementwise_affine = norm.normalized_shape, norm.eps, True
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("dims", dims.to(norm.weight.device), persistent=False)
        self.training = norm.training

    def forward(self, input: Tensor) -> Tensor:
        """Norm the dimensions that stay: (..., D) -> (..., D)."""
        kept = input.index_select(-1, self.dims)
        bias = self.bias[self.dims]
        normed = functional.layer_norm(kept, (len(self.dims),), self.weight[self.dims], bias, self.eps)
        return torch.zeros_like(input, dtype=normed.dtype).index_copy(-1, self.dims, normed)


class _PassedBy:
    """A layer that gives what it is given.

    It works all the same, as a layer of zeros would: the cache counts its tokens by its first layer, scores may ask
    what a matrix reads, and processes that train together wait for every parameter's gradient, which is 0.
    """

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]  # a mixin: the class beside it has the method
        return hidden_states + 0.0 * output if torch.is_grad_enabled() else hidden_states


def _norms(family: Family, config: Any) -> dict[str, tuple[Stack | None, int | None]]:
    """Name every norm's module, with the stack and layer it stands in."""
    return {
        path.rpartition(".")[0]: (item.stack, item.layer)
        for path, item in expected(family, config).items()
        if item.part == "norm"
    }


def layer_path(path: str, layer: int) -> str:
    """Name the module of the layer that a parameter stands in.

    >>> layer_path("bert.encoder.layer.1.output.dense.weight", 1)
    'bert.encoder.layer.1'
    """
    return f"{path.split(f'.{layer}.', 1)[0]}.{layer}"


def _layers(family: Family, config: Any) -> dict[tuple[Stack, int], str]:
    """Name every layer's module."""
    return {
        (item.stack, item.layer): layer_path(path, item.layer)
        for path, item in expected(family, config).items()
        if item.stack is not None and item.layer is not None
    }


def leave_out(model: nn.Module, gaps: Gaps) -> Callable[[], None]:
    """Make a live model leave out what its masks removed whole.

    Args:
        model: of one of our families; modules are exchanged in place, parameters stay what they are.
        gaps: what to leave out.

    Returns:
        A function that puts back what was there before.
    """
    config: Any = model.config
    family = FAMILIES[config.model_type]
    undo: list[Callable[[], None]] = []
    if gaps.dims is not None:
        for name in _norms(family, config):
            undo.append(_exchange(model, name, torch.tensor(gaps.dims)))
    modules = _layers(family, config)
    for stack, layers in gaps.layers.items():
        for layer in layers:
            undo.append(_pass_by(model.get_submodule(modules[stack, layer])))

    def put_back() -> None:
        for act in reversed(undo):
            act()

    return put_back


def _exchange(model: nn.Module, name: str, dims: Tensor) -> Callable[[], None]:
    parent_name, _, own = name.rpartition(".")
    parent, norm = model.get_submodule(parent_name), model.get_submodule(name)
    assert isinstance(norm, nn.LayerNorm)
    kept = KeptNorm(norm, dims)
    setattr(parent, own, kept)

    def put_back() -> None:
        norm.weight, norm.bias = kept.weight, kept.bias  # a cast may have changed the Parameters
        setattr(parent, own, norm.train(kept.training))

    return put_back


def _pass_by(layer: nn.Module) -> Callable[[], None]:
    kind = type(layer)
    if isinstance(layer, _PassedBy):
        return lambda: None  # a folder with gaps was loaded so
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"PassedBy{kind.__name__}", (_PassedBy, kind), {})
    layer.__class__ = _CLASSES[kind]

    def put_back() -> None:
        layer.__class__ = kind

    return put_back


def gaps_of(model: nn.Module) -> Gaps:
    """Tell what a live model leaves out.

    Args:
        model: of one of our families.

    Returns:
        The gaps, read off its modules.
    """
    config: Any = model.config
    family = FAMILIES[config.model_type]
    if not family.layer_norm:
        return Gaps()
    dims = next((tuple(module.dims.tolist()) for module in model.modules() if isinstance(module, KeptNorm)), None)
    layers: dict[Stack, tuple[int, ...]] = {}
    for (stack, layer), name in _layers(family, config).items():
        if isinstance(model.get_submodule(name), _PassedBy):
            layers[stack] = (*layers.get(stack, ()), layer)
    return Gaps(dims, layers)


def narrow(state: Mapping[str, Tensor], model: nn.Module, gaps: Gaps) -> dict[str, Tensor]:
    """Shorten norms to what they are computed over, so that plain transformers refuses the folder, and says so.

    Args:
        state: parameter name -> tensor.
        model: whose state it is.
        gaps: what the model leaves out.

    Returns:
        The state with shorter norms: those of layers that are passed by are empty.
    """
    return {**state, **{name: state[name][dims] for name, dims in _kept(model, gaps).items()}}


def widen(state: Mapping[str, Tensor], model: nn.Module, gaps: Gaps) -> dict[str, Tensor]:
    """Undo `narrow`: what a norm does not have is 0.

    Args:
        state: parameter name -> tensor, as `narrow` gave it.
        model: a model of the same configuration.
        gaps: what it leaves out.

    Returns:
        The state as the model holds it.

    Raises:
        AnatomyError: the gaps name what the model does not have, or a norm is missing or of another length.
    """
    config: Any = model.config
    family = FAMILIES[config.model_type]
    width = value(config, family.sizes["d_model"][0], None)
    there = _layers(family, config)
    layers = [(stack, layer) for stack, gone in gaps.layers.items() for layer in gone]
    if not set(gaps.dims or ()) <= set(range(width)) or not set(layers) <= set(there):
        raise AnatomyError([f"config.json: {GAPS} is damaged: it names what the model lacks. Prune the model again."])
    wide = dict(state)
    for name, dims in _kept(model, gaps).items():
        if name not in state or state[name].shape != dims.shape:
            raise AnatomyError([f"{name}: is not of {len(dims)} dimensions, as {GAPS} in config.json says."])
        full = torch.zeros(model.get_parameter(name).shape, dtype=state[name].dtype)
        wide[name] = full.index_copy(0, dims, state[name])
    return wide


def _kept(model: nn.Module, gaps: Gaps) -> dict[str, Tensor]:
    config: Any = model.config
    kept = {}
    for name, (stack, layer) in _norms(FAMILIES[config.model_type], config).items():
        passed_by = stack is not None and layer in gaps.layers.get(stack, ())
        if gaps.dims is None and not passed_by:
            continue
        dims = torch.tensor(() if passed_by else gaps.dims, dtype=torch.long)
        kept |= {f"{name}.weight": dims, f"{name}.bias": dims}
    return kept
