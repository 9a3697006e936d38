"""Memory that a training has freed goes back to the system, where glibc would keep it.

Batches of ever other lengths leave a heap full of holes that no later tensor fits: trainings of a model of 38 MB grew
to several GB over hours on a CPU (benchmarks/training_memory.py).
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

INTERVAL = 10.0  # seconds; a call takes 0.1 to 0.2 where a GB lies free: 1 to 2 % of the time at most


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """Find glibc's `malloc_trim`; other libraries have none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # in this order: no library, another one's, Windows
        return None


def give_back() -> bool:
    """Hand memory that is free back to the system.

    Returns:
        Whether this system knows how.
    """
    trim = _trim()
    if trim is None:
        return False
    trim(0)
    return True


class MemoryCallback(TrainerCallback):
    """Gives free memory back every 10 seconds, between two steps, and at the end; for trainings on a CPU."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give back, now and then."""
        if time.monotonic() - self.last >= INTERVAL:
            give_back()
            self.last = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give back what the training held."""
        give_back()
