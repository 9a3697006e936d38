"""Magnitude: what is near zero matters least."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """Score every weight by its absolute value (L1).

    Args:
        weight: any shape, floating point.

    Returns:
        The same shape, float32, >= 0, larger = keep.

    Source: Han et al. 2015, arXiv:1506.02626, sec. 3. torch.nn.utils.prune.L1Unstructured keeps the same set, ties
    aside.

    >>> magnitude(torch.tensor([-3.0, 0.5])).tolist()
    [3.0, 0.5]
    """
    return weight.to(torch.float32).abs()
