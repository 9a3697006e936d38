"""Random: the baseline that every other score has to beat."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def random_score(weight: Tensor, *, seed: int, path: str) -> Tensor:
    """Score every weight by a number drawn for it.

    The generator is seeded from the seed and the name together, so a tensor's numbers do not depend on the tensors
    scored before it, and torch's global generator is left alone.

    Args:
        weight: any shape; only its shape and device matter.
        seed: the recipe's seed.
        path: the weight's name.

    Returns:
        The same shape, float32, in [0, 1).

    >>> weight = torch.zeros(2, 3)
    >>> torch.equal(random_score(weight, seed=1, path="a"), random_score(weight, seed=1, path="a"))
    True
    >>> torch.equal(random_score(weight, seed=1, path="a"), random_score(weight, seed=1, path="b"))
    False
    """
    digest = hashlib.sha256(f"{seed}\0{path}".encode()).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.rand(weight.shape, generator=generator, dtype=torch.float32).to(weight.device)
