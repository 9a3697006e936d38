"""FPGM: a unit that the others of its place could stand in for matters least."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 256  # units whose distances are computed together: memory is that many times their number


def fpgm(units: Tensor) -> Tensor:
    """Score every unit by the sum of its distances to the others: the least is nearest their geometric median.

    A unit of zeros, as one that is gone, could stand in for none, and counts as none of the others.

    Args:
        units: (num_units, elements), floating point.

    Returns:
        (num_units,), float64, >= 0, larger = keep.

    Source: He et al. 2019, arXiv:1811.00250, eq. 6.

    >>> fpgm(torch.tensor([[1.0, 0.0], [4.0, 4.0], [1.0, 1.0]])).round(decimals=3).tolist()
    [6.0, 9.243, 5.243]
    """
    values = units.detach().double()
    others = values[values.any(1)]
    return torch.cat([torch.cdist(some, others).sum(1) for some in values.split(_AT_ONCE)])
