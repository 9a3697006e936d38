"""Ranks of a linear layer's output channels by what they give: NNI 2.x's APoZ rank and mean rank."""

from __future__ import annotations

from torch import Tensor


def output_apoz(weight: Tensor, *, output_active: Tensor) -> Tensor:
    """Score every element by the share of tokens at which its channel gives more than zero: 1 less the share of zeros.

    Args:
        weight: (out_features, ...) of a layer, or its bias (out_features,); only the shape matters.
        output_active: (out_features,): share of the tokens of the calibration batches at which the output, the bias
            included, is not zero behind a ReLU.

    Returns:
        The weight's shape, float32, 0 to 1; equal within a channel.

    Source: Hu et al. 2016, arXiv:1607.03250, eq. 1, taken of any linear layer as NNI 2.x has it.

    >>> import torch
    >>> output_apoz(torch.ones(2, 3), output_active=torch.tensor([0.25, 1.0])).tolist()
    [[0.25, 0.25, 0.25], [1.0, 1.0, 1.0]]
    """
    return _by_channel(weight, output_active)


def output_mean_rank(weight: Tensor, *, output_mean: Tensor) -> Tensor:
    """Score every element by the mean that its channel gives behind a ReLU.

    Args:
        weight: (out_features, ...) of a layer, or its bias (out_features,); only the shape matters.
        output_mean: (out_features,): mean over the tokens of the calibration batches of the output behind a ReLU, the
            bias included.

    Returns:
        The weight's shape, float32, >= 0; equal within a channel.

    Source: Molchanov et al. 2017, arXiv:1611.06440, sec. 2.2 ("activation"), taken of any linear layer as NNI 2.x has
    it.

    >>> import torch
    >>> output_mean_rank(torch.ones(2, 2), output_mean=torch.tensor([0.5, 2.0])).tolist()
    [[0.5, 0.5], [2.0, 2.0]]
    """
    return _by_channel(weight, output_mean)


def _by_channel(weight: Tensor, channels: Tensor) -> Tensor:
    return channels.float().view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape)
