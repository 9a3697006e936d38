"""Memory that a training has freed goes back to the system, where glibc would keep it.

Batches of ever other lengths leave a heap full of holes that no later tensor fits: trainings of a model of 38 MB grew
to several GB over hours on a CPU (benchmarks/training_memory.py).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

EVERY = 50  # steps; a call takes 0.1 to 0.2 s where some 100 MB lie free, under 1 % of so many steps of a small model


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
    """Gives free memory back every 50 steps and at the end; for trainings on a CPU."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give back, now and then."""
        if state.global_step % EVERY == 0:
            give_back()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give back what the training held."""
        give_back()
