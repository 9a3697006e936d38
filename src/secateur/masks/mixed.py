"""One threshold for units of different sizes: the lowest go, as long as all of the next one still fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def mixed_threshold(parts: Sequence[tuple[Tensor, int]], num_elements: int) -> float:
    """Find the score below which units of different sizes are removed.

    Args:
        parts: (scores of units, elements of one of them) for each tensor.
        num_elements: the most that may go, fewer than there are.

    Returns:
        Units that score below it go: together at most `num_elements`, and one more unit would be too many. Equals at
        the threshold stay together.

    >>> mixed_threshold([(torch.tensor([1.0, 4.0, 2.0]), 1), (torch.tensor([3.0, 5.0]), 2)], 3)
    3.0
    """
    scores = torch.cat([scores.flatten().cpu() for scores, _ in parts])
    sizes = torch.cat([torch.full((scores.numel(),), size, dtype=torch.int64) for scores, size in parts])
    ascending, order = scores.sort()
    held = sizes[order].cumsum(0)
    first = int(torch.searchsorted(held, num_elements, right=True))  # the first that is too many
    return float(ascending[min(first, len(ascending) - 1)])


def keep_from(scores: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Keep what scores at least the threshold.

    >>> keep_from({"w": torch.tensor([0.5, 0.1])}, 0.5)["w"].tolist()
    [True, False]
    """
    return {path: torch.as_tensor(score >= threshold) for path, score in scores.items()}
