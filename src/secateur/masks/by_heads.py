"""Feed-forward neurons shared out by the attention heads that each layer has kept.

Source: the idea is NNI's (its tutorial of pruning BERT on MNLI, v3.0: a layer that lost heads loses neurons too).
Differs: the neurons of all layers add up to one budget, and their number is proportional to the heads.
"""

from __future__ import annotations

from collections.abc import Sequence

from secateur.errors import MaskError


def neurons_by_heads(sizes: Sequence[int], heads: Sequence[int], number: int, *, least: int = 1) -> list[int]:
    """Share a number of neurons out over layers in proportion to their heads.

    Args:
        sizes: neurons that each layer has.
        heads: heads that each layer has kept.
        number: of neurons that are kept in all.
        least: neurons that every layer keeps, at least 1.

    Returns:
        Neurons that each layer keeps, `number` in all. A layer keeps no more than it has and no fewer than `least`;
        where that acts, the others share the rest.

    Raises:
        MaskError: the number is too small or too large for these limits.

    >>> neurons_by_heads([8, 8, 8], [4, 2, 0], 12), neurons_by_heads([8, 8], [3, 1], 12)
    ([7, 4, 1], [8, 4])
    """
    if not len(sizes) * least <= number <= sum(sizes):
        raise MaskError(
            f"ffn_neuron: {number} of {sum(sizes)} neurons are to stay, and each of {len(sizes)} layers keeps {least} "
            "at least. Change sparsity or min_keep."
        )
    low, high = 0.0, float(max(sizes))  # how many neurons a head stands for
    for _ in range(60):
        middle = (low + high) / 2
        if sum(_clip(middle * count, least, size) for count, size in zip(heads, sizes, strict=True)) < number:
            low = middle
        else:
            high = middle
    exact = [_clip(high * count, least, size) for count, size in zip(heads, sizes, strict=True)]
    kept = [int(share + 1e-6) for share in exact]
    order = sorted(range(len(kept)), key=lambda index: (kept[index] - exact[index], -heads[index]))
    while sum(kept) < number:  # what rounding left; more only where all layers with heads are full
        for index in order:
            kept[index] += kept[index] < sizes[index] and sum(kept) < number
    return kept


def _clip(share: float, least: int, size: int) -> float:
    return min(max(share, float(least)), float(size))
