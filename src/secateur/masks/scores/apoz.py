"""APoZ: a unit whose output is mostly zero matters least."""

from __future__ import annotations

from torch import Tensor


def apoz(*, input_active: Tensor) -> Tensor:
    """Score every unit by the share of its outputs that are not zero: 1 less the average percentage of zeros.

    It tells neurons behind a ReLU apart; GELU and attention hardly ever give exact zeros.

    Args:
        input_active: (num_units, features of one unit): share of the tokens of the calibration batches at which the
            feature is not zero.

    Returns:
        (num_units,), float64, 0 to 1, larger = keep.

    Source: Hu et al. 2016, arXiv:1607.03250, eq. 1.
    """
    return input_active.double().mean(1)
