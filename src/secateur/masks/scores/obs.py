"""Optimal brain surgeon: what a layer's outputs lose when a weight goes and the rest of its row makes up for it."""

from __future__ import annotations

import torch
from torch import Tensor


def obs(weight: Tensor, *, input_inverse: Tensor, output_power: Tensor) -> Tensor:
    """Score every weight of a linear layer by the error that its removal leaves, relative to what the layer gives.

    Without weight j of a row, the rest of the row adjusted at best, the mean square of the row's output changes by
    w_j^2 / [H^-1]_jj, where H is the mean of x x^T over the tokens that the layer reads. Divided by the mean square of
    all outputs of the layer, scores of different layers can be compared. In a prune stage the adjustment itself
    follows: see `masks.reconstruct`.

    Args:
        weight: (out_features, in_features), floating point.
        input_inverse: (in_features,): the diagonal of H^-1, damped; infinite for a feature that is always 0.
        output_power: (1,): mean over tokens of the sum of the squares of what the layer gives.

    Returns:
        (out_features, in_features), float32, >= 0.

    Source: Hassibi and Stork 1992 (optimal brain surgeon), eq. 5; layer by layer Frantar and Alistarh 2023 (SparseGPT),
    arXiv:2301.00774, eq. 3; relative to the layer's outputs here.

    >>> weight, inverse = torch.tensor([[1.0, -2.0]]), torch.tensor([0.5, 4.0])
    >>> obs(weight, input_inverse=inverse, output_power=torch.tensor([2.0])).tolist()
    [[1.0, 0.5]]
    """
    return weight.to(torch.float32).square() / input_inverse / output_power.clamp_min(torch.finfo(torch.float32).tiny)
