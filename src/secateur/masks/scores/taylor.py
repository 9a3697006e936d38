"""First-order Taylor: what the loss would change if a weight went, as far as the gradient tells."""

from __future__ import annotations

import torch
from torch import Tensor


def taylor(weight: Tensor, *, gradient: Tensor) -> Tensor:
    """Score every weight by |w g|.

    Args:
        weight: any shape, floating point.
        gradient: the same shape: mean over calibration batches of the gradient's absolute value, in nats per unit of
            weight.

    Returns:
        The same shape, float32, >= 0, in nats.

    Source: Molchanov et al. 2019, arXiv:1906.10771, eq. 8, with absolute values instead of squares.

    >>> taylor(torch.tensor([-2.0, 1.0]), gradient=torch.tensor([0.5, 3.0])).tolist()
    [1.0, 3.0]
    """
    return weight.to(torch.float32).abs() * gradient
