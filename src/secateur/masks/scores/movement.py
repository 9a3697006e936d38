"""Movement: whether training moves a weight away from zero; learned while masks prune (see `retrain.movement`)."""

from __future__ import annotations

from torch import Tensor


def movement(weight: Tensor, *, learned: Tensor) -> Tensor:
    """Score every weight by what training has learned about it; the weights of highest rank stay.

    Args:
        weight: any shape, floating point.
        learned: the same shape: the score that was trained with the weight, 0 at first.

    Returns:
        The same shape, float32.

    Source: Sanh et al. 2020, arXiv:2005.07683, sec. 3.
    """
    return learned.to(weight.device)


def soft_movement(weight: Tensor, *, learned: Tensor) -> Tensor:
    """Score as `movement` does; on the way, a weight goes when its score falls below a threshold.

    Args:
        weight: any shape, floating point.
        learned: the same shape: the score that was trained with the weight, under a pressure towards removal.

    Returns:
        The same shape, float32.

    Source: Sanh et al. 2020, arXiv:2005.07683, sec. 3 ("soft movement pruning").
    """
    return learned.to(weight.device)


def slim(weight: Tensor, *, learned: Tensor) -> Tensor:
    """Score by the factor that training has learned to multiply the weight with, under a pressure towards 0.

    Args:
        weight: any shape, floating point.
        learned: the same shape: the factor, 1 at first.

    Returns:
        The same shape, float32, >= 0.

    Source: Liu et al. 2017 (network slimming), arXiv:1708.06519, sec. 3, with a factor for each unit of any layer, as
    NNI 3.0 has it, instead of a batch norm's.
    """
    return learned.to(weight.device).abs()
