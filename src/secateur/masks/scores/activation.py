"""Activation (Wanda): a weight matters as much as what flows through it."""

from __future__ import annotations

import torch
from torch import Tensor


def activation(weight: Tensor, *, input_norm: Tensor) -> Tensor:
    """Score every weight of a linear layer by |w| times the norm of the input feature that it reads.

    The paper compares the weights of one output with each other (`scope: row`); `scope` decides here.

    Args:
        weight: (out_features, in_features), floating point.
        input_norm: (in_features,): root of the mean square over the tokens of the calibration batches.

    Returns:
        (out_features, in_features), float32, >= 0.

    Source: Sun et al. 2024 (Wanda), arXiv:2306.11695, eq. 1.

    >>> activation(torch.tensor([[1.0, -2.0]]), input_norm=torch.tensor([3.0, 0.5])).tolist()
    [[3.0, 1.0]]
    """
    return weight.to(torch.float32).abs() * input_norm
