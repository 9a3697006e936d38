"""Everything `secateur inspect` says about a model, as one JSON-ready value."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.cost import macs
from secateur.anatomy.roles import Anatomy, Weight


def _count_nonzero(model: nn.Module, anatomy: Anatomy) -> dict[str, int] | None:
    """Count the values of every tensor that are not zero, under all its names; None when there are no values."""
    parameters = {weight.path: model.get_parameter(weight.path) for weight in anatomy.unique()}
    if any(parameter.is_meta for parameter in parameters.values()):
        return None
    counts = {path: int(torch.count_nonzero(parameter.detach())) for path, parameter in parameters.items()}
    return {weight.path: counts[weight.storage] for weight in anatomy.weights}


def _describe_weight(weight: Weight, *, num_parameters: int, nonzero: int | None) -> dict[str, Any]:
    """One name: where it is, how large, what it is tied to, how much of it is zero."""
    return {
        "path": weight.path,
        "role": weight.role,
        "part": weight.part,
        "stack": weight.stack,
        "layer": weight.layer,
        "shape": list(weight.shape),
        "num_elements": weight.numel,
        "share": weight.numel / num_parameters,
        "tied_to": None if weight.owns else weight.storage,
        "nonzero": nonzero,
        "sparsity": None if nonzero is None else 1.0 - nonzero / weight.numel,
    }


def describe(model: nn.Module, *, source_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Describe a model: its parts, what they weigh, what a token costs.

    Args:
        model: live, or on the meta device.
        source_tokens: length of the source that the costs are for, at least 1.
        new_tokens: length of the output that the costs are for, at least 1.

    Returns:
        `family`, `head_scale`, `fingerprint`;
        `weights`: every name in the model's order. `share` is its tensor's share of the unique parameters; the shares
        of the names with `tied_to` null sum to 1. `nonzero` and `sparsity` are null on the meta device;
        `source_tokens`, `new_tokens`: the lengths given;
        `macs`: of one row, dense: `per_source_token`, `per_generated_token`, `total`;
        `macs_nonzero`: the same without the zeros, null on the meta device;
        `counts`: `counted_ratio` and `stored_ratio` are both the share of this model's own unique parameters that is
        not zero (a model alone cannot tell what its dense ancestor had), null on the meta device; `num_parameters` and
        `num_bytes` count every tensor once.

    Raises:
        AnatomyError: the model is not what its family says.
        SecateurError: a length is below 1.
    """
    anatomy = anatomy_of(model)
    total = anatomy.num_parameters
    nonzero = _count_nonzero(model, anatomy)
    sparse = kept = None
    if nonzero is not None:
        zeros = {weight.path: weight.numel - nonzero[weight.path] for weight in anatomy.weights}
        sparse = asdict(macs(anatomy, source_tokens=source_tokens, new_tokens=new_tokens, zeros=zeros))
        kept = sum(nonzero[weight.path] for weight in anatomy.unique()) / total
    return {
        "family": anatomy.family,
        "head_scale": anatomy.head_scale,
        "fingerprint": anatomy.fingerprint(),
        "weights": [
            _describe_weight(weight, num_parameters=total, nonzero=nonzero[weight.path] if nonzero else None)
            for weight in anatomy.weights
        ],
        "source_tokens": source_tokens,
        "new_tokens": new_tokens,
        "macs": asdict(macs(anatomy, source_tokens=source_tokens, new_tokens=new_tokens)),
        "macs_nonzero": sparse,
        "counts": {
            "counted_ratio": kept,
            "stored_ratio": kept,
            "num_parameters": total,
            "num_bytes": sum(
                weight.numel * model.get_parameter(weight.path).element_size() for weight in anatomy.unique()
            ),
        },
    }
