"""Optimal brain surgeon with a second factor: how much the loss feels of what each output of the layer is off by."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.masks.scores.obs import obs

DAMPING = 0.1  # of the mean over the layer's outputs: what the loss hardly feels now it may feel when much has gone
POWER = 0.25  # of the mean square gradient; 1 would be the quadratic estimate, which is right for small changes alone


def obs_fisher(weight: Tensor, *, input_inverse: Tensor, output_power: Tensor, output_gradient: Tensor) -> Tensor:
    """Score every weight by what its removal does to its output, and by how much the loss feels that output.

    The curvature of the loss is taken for a product of two: that of what the layer reads (as `obs` does), and that of
    each output, the mean square of the loss's gradient there. The second is damped and its fourth root taken, for it
    holds for small changes only: of a word of the head that is never probable in the dense model nearly everything
    would go, and the word would become probable. With one threshold for a matrix (`scope: tensor`) rows that matter
    more keep more.

    Args:
        weight: (out_features, in_features), floating point.
        input_inverse: (in_features,): see `obs`.
        output_power: (1,): see `obs`.
        output_gradient: (out_features,): the mean over tokens of the square of the gradient at the layer's outputs.

    Returns:
        (out_features, in_features), float32, >= 0.

    Source: the two factors van der Ouderaa et al. 2024 (LLM Surgeon), arXiv:2312.17244, with the second one's diagonal
    alone; its damping and root were chosen here.

    >>> weight, ones = torch.tensor([[1.0], [1.0]]), torch.tensor([1.0])
    >>> power, gradient = torch.tensor([1.0]), torch.tensor([0.0, 2.0])
    >>> obs_fisher(weight, input_inverse=ones, output_power=power, output_gradient=gradient).round(decimals=1)
    tensor([[0.6000],
            [1.2000]])
    """
    relative = output_gradient / output_gradient.mean().clamp_min(torch.finfo(torch.float32).tiny)
    importance = (relative + DAMPING).pow(POWER)
    return obs(weight, input_inverse=input_inverse, output_power=output_power) * importance[:, None]
