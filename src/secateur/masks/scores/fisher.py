"""Fisher: what the loss would change if a weight went, as far as its curvature tells."""

from __future__ import annotations

import torch
from torch import Tensor


def fisher(weight: Tensor, *, squared_gradient: Tensor) -> Tensor:
    """Score every weight by w^2 g^2, the diagonal of the empirical Fisher information standing for the curvature.

    Args:
        weight: any shape, floating point.
        squared_gradient: the same shape: mean over calibration batches of the gradient's square.

    Returns:
        The same shape, float32, >= 0.

    Source: Theis et al. 2018, arXiv:1801.05787, eq. 7, without the half; gradients are of batches, not of single rows.

    >>> fisher(torch.tensor([-2.0, 1.0]), squared_gradient=torch.tensor([0.25, 9.0])).tolist()
    [1.0, 9.0]
    """
    return weight.to(torch.float32).square() * squared_gradient
