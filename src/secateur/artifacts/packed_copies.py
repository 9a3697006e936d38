"""Tensors that are the embedding table again: masked, and for T5 times d_model^-0.5. They are stored as that.

A head that was pruned under `tie: view` is such a tensor in a plain folder (`save_plain` makes it), and so is a head
that was only given its own copy. The check is on every bit, so what is found can be made again exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from secateur.artifacts.packed_bytes import chunks
from secateur.artifacts.packed_values import FLOATS, floats

TABLES = ("shared.weight", "model.shared.weight")


@dataclass(frozen=True)
class Copy:
    """How a tensor follows from the table.

    Attributes:
        scale: what the table is multiplied by, 1 or d_model^-0.5.
        signed: whether removed entries have the table's sign (a product with the mask leaves -0.0 where the table is
            negative), or are plain zeros.
    """

    scale: float
    signed: bool

    def as_json(self) -> dict[str, Any]:
        """The fields, for the header."""
        return asdict(self)


def make_copy(table: np.ndarray, alive: np.ndarray, copy: Copy, *, dtype: str) -> np.ndarray:
    """Compute a copy as `save_plain` does: in fp32, mask first, and rounded to the stored type at the end.

    Args:
        table: the table's bytes, uint8, writable.
        alive: bool (n,), True = keep.
        copy: how.
        dtype: of the table and of the copy.

    Returns:
        The copy's bytes, uint8.

    >>> table, mask = np.array([-2.0, 3.0], np.float32).view(np.uint8), np.array([False, True])
    >>> make_copy(table, mask, Copy(scale=0.5, signed=True), dtype="F32").view(np.float32).tolist()
    [-0.0, 1.5]
    """
    source = floats(table, dtype)
    kept = torch.from_numpy(alive)
    made = torch.empty_like(source)
    for part in chunks(len(source)):
        wide = source[part].float()
        wide = wide * kept[part] if copy.signed else wide.masked_fill(~kept[part], 0)
        made[part] = wide if copy.scale == 1 else wide * copy.scale
    return made.view(torch.uint8).numpy()


def find_copy(
    read_table: Callable[[slice], np.ndarray],
    read_tensor: Callable[[slice], np.ndarray],
    *,
    dtype: str,
    shape: Sequence[int],
) -> Copy | None:
    """Find out whether a tensor is a copy of the table, some rows at a time.

    Args:
        read_table: gives the bytes of a slice of the table's rows, uint8, writable.
        read_tensor: the same for the tensor.
        dtype: of both, in safetensors' words.
        shape: of both, (vocab_size, d_model).

    Returns:
        How it follows from the table, bit for bit; None if it does not.
    """
    if dtype not in FLOATS or len(shape) != 2 or 0 in shape:
        return None
    choices = [Copy(scale, signed) for scale in (1.0, shape[1] ** -0.5) for signed in (True, False)]
    for rows in chunks(*shape):
        table, tensor = read_table(rows), read_tensor(rows)
        alive = alive_of(tensor, dtype)
        choices = [copy for copy in choices if np.array_equal(make_copy(table, alive, copy, dtype=dtype), tensor)]
        if not choices:
            return None
    return choices[0]


def alive_of(tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Say where a tensor is not zero: uint8 (n x size,), writable -> bool (n,)."""
    return (floats(tensor, dtype) != 0).numpy()
