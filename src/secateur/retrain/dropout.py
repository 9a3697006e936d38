"""Dropout that costs a few per cent of a training step on a CPU, where torch's own doubles the step.

Torch draws one random float per element on one thread; one random byte is enough to compare with a rate. The bytes
come from torch's global generator, so whoever restores its state (the trainer's checkpoints do) repeats the masks.
Differs from Srivastava et al. 2014 (JMLR 15) in one point: the rate is rounded to the next 1/256, and the kept values
are scaled by the inverse of what is really kept, so their mean is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

LEVELS = 256  # that a byte has
_RATES = ("dropout", "activation_dropout")  # what layers keep as plain numbers: T5's attention, all of BART's


def num_dropped(rate: float) -> int:
    """Round a rate to the levels of a byte; never all of them.

    >>> num_dropped(0.1), num_dropped(0.0), num_dropped(0.999)
    (26, 0, 255)
    """
    return min(round(rate * LEVELS), LEVELS - 1)


def draw_kept(values: torch.Tensor, dropped: int) -> torch.Tensor:
    """Draw which elements stay, from one random byte each.

    Args:
        values: any shape; only the shape matters.
        dropped: of 256 elements, how many go on average.

    Returns:
        True where an element stays; of the same shape.
    """
    count = values.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:count].view(values.shape) >= dropped


class ByteDropout(nn.Dropout):
    """`nn.Dropout` for CPU tensors, from one random byte per element.

    >>> _ = torch.manual_seed(0)
    >>> kept = ByteDropout(0.25)(torch.ones(4096))
    >>> sorted(set(kept.tolist())) == [0.0, torch.tensor(256 / 192).item()]
    True
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop elements while training.

        Args:
            input: any shape, floating point, on a CPU.

        Returns:
            The same shape and dtype.
        """
        dropped = num_dropped(self.p)
        if not self.training or dropped == 0:
            return input
        return input * draw_kept(input, dropped).to(input.dtype).mul_(LEVELS / (LEVELS - dropped))


@contextmanager
def dropout_rate(model: nn.Module, rate: float | None, *, device: str) -> Iterator[None]:
    """Give every dropout of a model one rate for the time of a block, by the cheapest means the device has.

    A rate of 0 lets nothing be dropped, whole layers neither (BART's layerdrop); above 0 that rate is the model's own.

    Args:
        model: a Hugging Face model; as it was before when the block ends.
        rate: 0 <= rate < 1, or none for the model's own rates.
        device: `ByteDropout` takes over on "cpu".

    Yields:
        Nothing.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    changed: list[tuple[Any, str, float]] = []

    def change(owner: Any, name: str, value: float) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                if rate is not None:
                    change(child, "p", rate)
                if device == "cpu":
                    replaced.append((parent, name, child))
                    setattr(parent, name, ByteDropout(child.p).train(child.training))
        if rate is not None:
            names = _RATES if rate else (*_RATES, "layerdrop")
            for name in names:
                if isinstance(getattr(parent, name, None), (int, float)):
                    change(parent, name, rate)
    try:
        yield
    finally:
        for parent, name, child in replaced:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)
