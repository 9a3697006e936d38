"""What NNI calls ops: a model's modules by name, with the tensors that can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from secateur.anatomy.roles import Anatomy, Weight
from secateur.masks.tie import HEAD
from secateur.masks.view import MaskedLinear

# The types that NNI 3.0 has settings for; it stops at any other.
PRUNABLE = (
    "Linear",
    "Embedding",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
)


@dataclass(frozen=True)
class Op:
    """One module.

    Attributes:
        kind: its class's name; empty where only names are known, and this is no layer of weights.
        tensors: weight, bias -> the parameter's own name and shape.
        storage: weight, bias -> the first name of the tensor that it is.
    """

    kind: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    storage: Mapping[str, str] = field(default_factory=dict)


def ops_of(model: nn.Module) -> dict[str, Op]:
    """List a live model's modules.

    Args:
        model: any; a layer that is seen through a mask counts as what it stands for.

    Returns:
        Module name -> what it is, in the model's order, names of shared modules included.

    >>> list(ops_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU())))
    ['', '0', '1']
    """
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first.setdefault(id(parameter), name)
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = "Linear" if isinstance(module, MaskedLinear) else type(module).__name__
        tensors, storage = {}, {}
        for target in ("weight", "bias"):
            parameter = module._parameters.get(target)
            if parameter is not None:
                path = f"{name}.{target}" if name else target
                tensors[target], storage[target] = (path, tuple(parameter.shape)), first[id(parameter)]
        found[name] = Op(kind, tensors, storage)
    return found


def ops_of_anatomy(anatomy: Anatomy, *, untied: bool = False) -> dict[str, Op]:
    """List a model's modules by its map alone; containers are there by name only.

    Args:
        anatomy: of one of our families.
        untied: whether the head has since got a table of its own.

    Returns:
        Module name -> what it is.
    """
    found: dict[str, Op] = {"": Op("")}
    for weight in anatomy.weights:
        name, _, target = weight.path.rpartition(".")
        steps = name.split(".")
        for depth in range(1, len(steps)):
            found.setdefault(".".join(steps[:depth]), Op(""))
        before = found.get(name, Op(""))
        found[name] = Op(
            _kind(weight, anatomy.family),
            {**before.tensors, target: (weight.path, weight.shape)},
            {**before.storage, target: weight.path if untied and weight.path == HEAD else weight.storage},
        )
    return found


def _kind(weight: Weight, family: str) -> str:
    """The name of the class that holds a parameter: what is neither a table nor a norm is linear."""
    kinds = {"embedding": "Embedding", "position_bias": "Embedding", "norm": f"{family.upper()}LayerNorm"}
    return kinds.get(weight.role, "Linear")
