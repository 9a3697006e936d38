"""Activation mean: a unit whose output is small matters least."""

from __future__ import annotations

from torch import Tensor


def activation_mean(*, input_mean: Tensor) -> Tensor:
    """Score every unit by the mean absolute value of its outputs.

    Args:
        input_mean: (num_units, features of one unit): mean absolute value over the tokens of the calibration batches,
            as the matrix that follows the unit reads it.

    Returns:
        (num_units,), float64, >= 0, larger = keep.

    Source: Molchanov et al. 2017, arXiv:1611.06440, sec. 2.2 ("activation"), with absolute values: the outputs of
    heads and of gated feed-forwards have both signs.
    """
    return input_mean.double().mean(1)
