"""Amounts of torch.nn.utils.prune, which count what remains, as sparsity, which counts the original.

torch prunes the elements (or, with `structured`, the channels) that earlier calls left: a float is a share of these,
rounded to a whole number; an int is a number of them. Ours is cumulative: round(sparsity x n) of the original n are
gone afterwards, whatever happened before.

Source: `_compute_nparams_toprune`, `_validate_pruning_amount` and `PruningContainer.compute_mask` of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real

from torch import Tensor

from secateur.errors import MaskError

Amount = float | int


def removed_of(*amounts: Amount, num_units: int, removed: int = 0) -> int:
    """Count what is gone after calls of torch.nn.utils.prune on the same tensor or the same group.

    Args:
        *amounts: what each call was given, in their order: a share of what remained (float, 0.0 to 1.0), or a number of
            units (int, at least 0).
        num_units: how many units there were before any pruning: elements of the tensor (of all tensors together under
            `global_unstructured`), or its channels under `ln_structured` and `random_structured`.
        removed: units that earlier calls of another kind had removed, 0 to num_units.

    Returns:
        How many of the units are gone in all.

    Raises:
        MaskError: torch would refuse an amount too: out of range, or more units than remain.

    >>> removed_of(0.5, 0.5, num_units=100), removed_of(0.5, 10, num_units=100)
    (75, 60)
    """
    if not 0 <= removed <= num_units:
        raise MaskError(f"removed is {removed}; of {num_units} units between none and all can be gone.")
    for amount in amounts:
        removed += _step(amount, num_units - removed)
    return removed


def sparsity_of(*amounts: Amount, num_units: int, removed: int = 0) -> float:
    """Turn amounts of torch.nn.utils.prune into the sparsity that removes as many, to the element.

    Args:
        *amounts: see `removed_of`.
        num_units: see `removed_of`.
        removed: see `removed_of`. After a call on a group, what a single tensor has lost is known from its mask:
            `masks.removed(path)`; after calls on single tensors, what the group has lost is their sum.

    Returns:
        The cumulative sparsity: round(sparsity x num_units) is what torch leaves removed. 1.0 when nothing is left,
        which no group of ours may be given.

    Raises:
        MaskError: see `removed_of`.

    >>> sparsity_of(0.5, 0.5, num_units=100), sparsity_of(0.2, num_units=100, removed=50)
    (0.75, 0.6)
    """
    gone = removed_of(*amounts, num_units=num_units, removed=removed)
    return gone / num_units if num_units else 0.0


def removed_units(mask: Tensor, dim: int) -> int:
    """Count the channels that a mask empties, as torch's structured methods do before they share out an amount.

    Args:
        mask: 0 or 1, or bool; any shape with that dimension.
        dim: the dimension whose channels are counted; negative counts from the end.

    Returns:
        How many slices along `dim` hold nothing that stays.

    >>> import torch
    >>> removed_units(torch.tensor([[True, False], [False, False]]), dim=0)
    1
    """
    others = [other for other in range(mask.dim()) if other != dim % mask.dim()]
    alive = mask.bool()
    for other in reversed(others):
        alive = alive.any(dim=other)
    return int((~alive).sum())


def group_removed(masks: Mapping[str, Tensor], sizes: Mapping[str, int]) -> int:
    """Count what tensors have lost together: what a call of `global_unstructured` on them begins with.

    Args:
        masks: name -> mask, 0 or 1, or bool. A tensor without one has lost nothing.
        sizes: name -> elements, of all tensors of the call.

    Returns:
        The sum over the tensors that `sizes` names.

    >>> import torch
    >>> group_removed({"a": torch.tensor([True, False])}, {"a": 2, "b": 5})
    1
    """
    return sum(masks[name].numel() - int(masks[name].count_nonzero()) for name in sizes if name in masks)


def _step(amount: Amount, remaining: int) -> int:
    """Count what one call takes of what remains."""
    if isinstance(amount, bool) or not isinstance(amount, Real):
        raise MaskError(f"amount {amount!r}: give a float (share of what remains) or an int (number of units).")
    if isinstance(amount, Integral):
        if not 0 <= int(amount) <= remaining:
            raise MaskError(f"amount {amount}: a number of units, and {remaining} remain. torch refuses it too.")
        return int(amount)
    if not 0.0 <= float(amount) <= 1.0:
        raise MaskError(f"amount {amount}: a share is between 0.0 and 1.0. torch refuses it too.")
    return round(float(amount) * remaining)  # Python's own rounding, half to even, is torch's


__all__ = ["Amount", "group_removed", "removed_of", "removed_units", "sparsity_of"]
