"""LAMP: magnitude that does not know a tensor's scale, so that one threshold is fair to all tensors of a group."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def lamp(weight: Tensor) -> Tensor:
    """Score every weight by its square over the sum of its tensor's squares that are not smaller.

    The largest weight of every tensor scores 1, so a threshold below 1 empties none. Within a tensor the order is that
    of `magnitude`; among equal magnitudes the lower flat index scores lower.

    Args:
        weight: any shape, floating point.

    Returns:
        The same shape, float32, in [0, 1]; zeros score 0.

    Source: Lee et al. 2021, arXiv:2010.07611, eq. 4.

    >>> lamp(torch.tensor([1.0, -2.0, 2.0])).tolist()  # 1/9, 4/8, 4/4
    [0.1111111119389534, 0.5, 1.0]
    """
    squares = weight.detach().to("cpu", torch.float32).flatten().square().numpy()
    # A float that is not negative orders as its bits do. With its index behind them one plain sort is enough, which is
    # several times faster than a stable argsort.
    keys = squares.view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(squares.size, dtype=np.uint64)
    keys.sort()
    order = keys.astype(np.uint32)  # the lower half
    keys >>= np.uint64(32)
    ascending = keys.astype(np.uint32).view(np.float32)
    rest = np.cumsum(ascending[::-1], dtype=np.float64)[::-1]  # of a weight: itself and all that come after it
    scores = np.zeros_like(squares)
    with np.errstate(invalid="ignore"):  # NaN and infinity go through, to be refused by name
        scores[order] = np.divide(ascending, rest, out=np.zeros_like(rest), where=rest != 0)
    return torch.from_numpy(scores).view(weight.shape).to(weight.device)
