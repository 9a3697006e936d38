"""What can be wrong with the tensors of a checkpoint that another tool pruned: all faults, each a whole sentence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.anatomy.roles import Anatomy
from secateur.interop.names import Sorted
from secateur.masks.tie import HEAD

CHANCE = 1e-3  # a trained matrix of floats has next to no exact zeros; more than this share was written there


def is_binary(mask: Tensor) -> bool:
    """Tell whether a mask says nothing but remove (0) and keep (1); NaN is neither.

    >>> is_binary(torch.tensor([0.0, 1.0])), is_binary(torch.tensor([0.0, 0.5]))
    (True, False)
    """
    return mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all())


def are_masks(tensors: Mapping[str, Tensor]) -> bool:
    """Tell a mapping of masks from plain weights: whole numbers, or mostly 0 and 1 (a norm begins with ones)."""
    if any(not tensor.is_floating_point() for tensor in tensors.values()):
        return True
    matrices = [tensor for tensor in tensors.values() if tensor.dim() > 1]
    return bool(matrices) and 2 * sum(map(is_binary, matrices)) >= len(matrices)


def _shape_fault(path: str, tensor: Tensor, anatomy: Anatomy, what: str) -> list[str]:
    wanted = anatomy[path].shape
    if tuple(tensor.shape) == wanted:
        return []
    return [f"{path}: {what} has shape {list(tensor.shape)}, the model's weight {list(wanted)}."]


def mask_faults(found: Sorted, anatomy: Anatomy) -> list[str]:
    """List what is wrong with masks: shapes, NaN, entries that are neither 0 nor 1.

    Args:
        found: a checkpoint's tensors by what they are.
        anatomy: of the model that they belong to.

    Returns:
        One sentence a fault.
    """
    faults = []
    for path, mask in found.masks.items():
        faults += _shape_fault(path, mask, anatomy, "its mask")
        if mask.is_floating_point() and not bool(mask.isfinite().all()):
            faults.append(f"{path}: its mask holds NaN or infinity. Save it again.")
        elif not is_binary(mask):
            odd = int(((mask != 0) & (mask != 1)).count_nonzero())
            faults.append(f"{path}: its mask is not binary: {odd:,} of {mask.numel():,} entries are neither 0 nor 1.")
    return faults


def weight_faults(found: Sorted, anatomy: Anatomy) -> list[str]:
    """List what is wrong with weights: shapes, types, NaN, missing ones, masks without weights, several tables.

    Args:
        found: a checkpoint's tensors by what they are.
        anatomy: of the model that they belong to.

    Returns:
        One sentence a fault.
    """
    faults = []
    for path, tensor in found.weights.items():
        faults += _shape_fault(path, tensor, anatomy, "its weight")
        if not tensor.is_floating_point():
            faults.append(f"{path}: its weight is {tensor.dtype}, not floating point.")
        elif not bool(tensor.isfinite().all()):
            faults.append(
                f"{path}: its weight holds NaN or infinity. Did training diverge? Take an earlier checkpoint."
            )
    faults += [
        f"{path}: stands there as it was before its mask, and the mask is missing. Save both."
        for path in found.masked
        if path not in found.masks
    ]
    return [*faults, *_missing(found.weights, anatomy), *_several_tables(found.weights, anatomy)]


def _missing(weights: Mapping[str, Tensor], anatomy: Anatomy) -> list[str]:
    faults = []
    for weight in anatomy.unique():
        names = (weight.path, *anatomy.tied(weight.path))
        if not any(name in weights for name in names):
            others = f" (or {', '.join(names[1:])})" if names[1:] else ""
            faults.append(f"{weight.path}: missing{others}. Save the whole state dict.")
    return faults


def _several_tables(weights: Mapping[str, Tensor], anatomy: Anatomy) -> list[str]:
    tables = [
        name for name in (anatomy.table.path, *anatomy.tied(anatomy.table.path)) if name in weights and name != HEAD
    ]
    return [
        f"{name}: differs from {tables[0]}; a model here has one embedding table."
        for name in tables[1:]
        if weights[name].shape == weights[tables[0]].shape and not torch.equal(weights[tables[0]], weights[name])
    ]


def unmasked_zeros(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Count zeros in matrices, where there are more than chance would leave and no mask speaks of them.

    Args:
        weights: name -> tensor.
        masks: name -> mask.

    Returns:
        Name -> zeros, of the matrices that have too many.

    >>> unmasked_zeros({"a": torch.eye(4), "b": torch.ones(4, 4)}, {})
    {'a': 12}
    """
    found = {}
    for path, weight in weights.items():
        if weight.dim() < 2 or path in masks:
            continue
        zeros = weight == 0
        count = int(zeros.count_nonzero())
        one_row = weight.shape[-1] if bool(zeros.all(-1).any()) else 0  # the row of a padding token may be zero
        if count - one_row > CHANCE * weight.numel():
            found[path] = count
    return found
