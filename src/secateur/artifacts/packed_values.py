"""Code one tensor as it is stored in a packed file, and restore it.

Zeros are taken out of the values and told by a mask, where that is shorter. Values are rounded to what was asked for.
Negative zeros (a mask times a negative weight) come back exactly where the values are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from secateur.artifacts.packed_bytes import (
    chunks,
    compress,
    compress_mask,
    compress_numbers,
    decompress,
    decompress_mask,
    decompress_numbers,
)
from secateur.errors import CheckpointError

Values = Literal["fp32", "fp16", "bf16", "int8"]
KINDS: dict[str, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8": "I8"}  # as safetensors names them
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
POSITION_BIAS = "relative_attention_bias"  # few numbers, added to every score of its stack: never int8
MIN_ROW = 8  # below that, a scale per row costs more than int8 saves
LARGEST = 127  # of int8, symmetric


@dataclass(frozen=True)
class Coded:
    """One tensor as it is stored.

    Attributes:
        facts: JSON-ready: what `decode` needs beside the parts, `stored` values, and how many of them are `nonzero`.
        parts: compressed `values`, `scales`, `mask`, `signs`; empty ones are left out.
    """

    facts: dict[str, Any]
    parts: dict[str, bytes]


def stored_kind(name: str, dtype: str, shape: Sequence[int], values: Values) -> str:
    """Say what a tensor's values are stored as.

    Nothing is stored wider than it is. int8 takes matrices; vectors and position biases stay as they are.

    Args:
        name: of the tensor.
        dtype: of the tensor, in safetensors' words.
        shape: of the tensor.
        values: what was asked for.

    Returns:
        F32, F16, BF16 or I8; "bytes" for what holds no such floats.

    >>> stored_kind("a.weight", "F32", (64, 64), "int8"), stored_kind("a.weight", "BF16", (64, 64), "fp16")
    ('I8', 'BF16')
    >>> stored_kind("norm.weight", "F32", (64,), "int8"), stored_kind("ids", "I64", (64,), "int8")
    ('F32', 'bytes')
    """
    if dtype not in FLOATS:
        return "bytes"
    if values == "int8":
        matrix = len(shape) > 1 and math.prod(shape[1:]) >= MIN_ROW and POSITION_BIAS not in name
        return "I8" if matrix else dtype
    return KINDS[values] if dtype == "F32" else dtype


def floats(data: np.ndarray, dtype: str) -> Tensor:
    """Look at bytes as the floats that they are: uint8 (n x size,) -> (n,), the same memory."""
    if not data.size:  # numpy gives it a stride of 0, which torch does not look at as anything else
        return torch.empty(0, dtype=FLOATS[dtype])
    return torch.from_numpy(data).view(FLOATS[dtype])


def encode(data: np.ndarray, dtype: str, shape: Sequence[int], *, kind: str, level: int, where: str) -> Coded:
    """Code a tensor, with or without a mask, whichever is shorter.

    Args:
        data: its bytes, uint8, C order; not changed.
        dtype: in safetensors' words.
        shape: of the tensor.
        kind: from `stored_kind`.
        level: of zstd's search for repeats, 1 to 22.
        where: file and name, for messages.

    Returns:
        The coded tensor.

    Raises:
        CheckpointError: the values are to be rounded and are not finite, or become infinite by it.
    """
    if kind == "bytes":
        return _encode_bytes(data, shape, level)
    bits, scales = _narrow(data, dtype, shape, kind, where)
    alive = _alive(bits)
    nonzero = int(np.count_nonzero(alive))
    facts = {"values": kind, "nonzero": nonzero}
    scale = None if scales is None else compress_numbers(scales.view(np.uint32), level)
    choices = []
    if nonzero < len(bits):
        form, size, mask = compress_mask(alive, level)
        if len(mask) < bits.itemsize * (len(bits) - nonzero):  # otherwise the zeros take less than their mask
            signs = _signs(bits[~alive], level) if kind == dtype else b""
            masked = facts | {"stored": nonzero, "mask": form, "mask_bytes": size}
            frames = {"values": compress_numbers(bits[alive], level), "scales": scale}
            choices.append(_coded(masked, frames, {"mask": mask, "signs": signs}))
    if not choices or 2 * nonzero >= len(bits):  # with more zeros than that a mask pays
        frames = {"values": compress_numbers(bits, level), "scales": scale}
        choices.append(_coded(facts | {"stored": len(bits)}, frames, {}))
    return min(choices, key=lambda coded: sum(map(len, coded.parts.values())))


def decode(facts: Mapping[str, Any], parts: Mapping[str, bytes], *, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """Restore a tensor.

    Args:
        facts: of the coded tensor.
        parts: of the coded tensor.
        dtype: what it is restored as.
        shape: of the tensor.

    Returns:
        Its bytes, uint8; exactly those that were coded unless the values were rounded.

    Raises:
        CheckpointError: a part is damaged.
    """
    kind, count = facts["values"], math.prod(shape)
    if kind == "bytes":
        return decompress(parts.get("values", b""), facts["size"])
    bits = decompress_numbers(facts["planes"]["values"], parts.get("values", b""), facts["stored"])
    if "mask" in facts:
        bits = _spread(bits, facts, parts, count)
    if len(bits) != count:
        raise CheckpointError(f"holds {len(bits)} values instead of {count}")
    if kind == dtype:
        return bits.view(np.uint8)
    if kind != "I8":
        return floats(bits.view(np.uint8), kind).to(FLOATS[dtype]).view(torch.uint8).numpy()
    num_rows, row = _rows(shape)
    whole = torch.from_numpy(bits.view(np.int8)).view(num_rows, row)
    scales = torch.from_numpy(
        decompress_numbers(facts["planes"]["scales"], parts.get("scales", b""), num_rows).view(np.float32)
    )[:, None]
    wide = torch.empty(whole.shape, dtype=FLOATS[dtype])
    for part in chunks(num_rows, row):
        wide[part] = whole[part] * scales[part]
    return wide.view(-1).view(torch.uint8).numpy()


def measure_rounding(data: np.ndarray, restored: np.ndarray, dtype: str) -> tuple[float, float]:
    """Compare a tensor with what is restored of it.

    Args:
        data: bytes of the original, finite floats.
        restored: bytes of the restored tensor, of the same size.
        dtype: of both.

    Returns:
        The largest absolute difference, and the original's largest absolute value.
    """
    difference = largest = 0.0
    one, other = floats(data, dtype), floats(restored, dtype)
    for part in chunks(len(one)):
        original = one[part].double()
        difference = max(difference, float((other[part].double() - original).abs_().max()))
        largest = max(largest, float(original.abs_().max()))
    return difference, largest


def _encode_bytes(data: np.ndarray, shape: Sequence[int], level: int) -> Coded:
    """Store something other than these floats as it is; elements of less than a byte are counted by the byte."""
    count = math.prod(shape)
    elements = data.reshape(count, -1) if count and data.size % count == 0 else data.reshape(-1, 1)
    facts = {"values": "bytes", "size": data.size, "stored": len(elements)}
    frame = compress(data, level)
    return Coded(facts | {"nonzero": int(elements.any(axis=1).sum())}, {"values": frame} if frame else {})


def _coded(
    facts: dict[str, Any], numbers: Mapping[str, tuple[list[int], bytes] | None], parts: Mapping[str, bytes]
) -> Coded:
    """Put compressed numbers, the lengths of their planes, and other parts together."""
    planes = {name: some[0] for name, some in numbers.items() if some is not None}
    joined = {name: some[1] for name, some in numbers.items() if some is not None}
    return Coded(facts | {"planes": planes}, {name: part for name, part in {**joined, **parts}.items() if part})


def _alive(bits: np.ndarray) -> np.ndarray:
    """Say which values are not zero, bool (n,); minus zero is zero, and int8 has none."""
    alive = np.empty(len(bits), np.bool_)
    for part in chunks(len(bits)):
        alive[part] = (bits[part] if bits.itemsize == 1 else bits[part] << 1) != 0
    return alive


def _spread(values: np.ndarray, facts: Mapping[str, Any], parts: Mapping[str, bytes], count: int) -> np.ndarray:
    """Put values where the mask keeps, and zeros with their signs elsewhere."""
    alive = decompress_mask(facts["mask"], facts["mask_bytes"], parts.get("mask", b""), count)
    if int(np.count_nonzero(alive)) != len(values):
        raise CheckpointError("has another number of values than its mask keeps")
    whole = np.zeros(count, values.dtype)
    if parts.get("signs"):
        dead = count - len(values)
        negative = np.unpackbits(decompress(parts["signs"], -(-dead // 8)), count=dead)
        whole[~alive] = negative.astype(values.dtype) << (8 * values.itemsize - 1)
    whole[alive] = values
    return whole


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _narrow(
    data: np.ndarray, dtype: str, shape: Sequence[int], kind: str, where: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Round to what is stored: bits as whole numbers (n,), and for int8 the scales (rows,)."""
    if kind == dtype:
        return data.view(f"<u{FLOATS[kind].itemsize}"), None
    wide = floats(data, dtype)
    if not _finite(wide):
        raise CheckpointError(f"{where}: holds NaN or infinity, so it cannot be rounded. Pack it with fp32 values.")
    if kind == "I8":
        return _quantise(wide.view(_rows(shape)))
    narrow = wide.to(FLOATS[kind])
    if not _finite(narrow):
        raise CheckpointError(f"{where}: holds values too large for {kind}. Pack it with bf16 or fp32 values.")
    return narrow.view(torch.int16).numpy().view(np.uint16), None


def _finite(values: Tensor) -> bool:
    return not values.numel() or all(math.isfinite(float(end)) for end in torch.aminmax(values))


def _quantise(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Round each row to whole multiples of its own scale, its largest to 127 of them: uint8 (n,), float32 (rows,)."""
    if not rows.numel():
        return np.empty(0, np.uint8), np.zeros(len(rows), np.float32)
    low, high = torch.aminmax(rows, dim=1)
    largest = torch.maximum(-low, high).float().numpy()
    scales = largest / np.float32(LARGEST)
    # 127 scales must not pass the largest value: next to the end of a float's range they would be infinite.
    over = scales.astype(np.float64) * LARGEST > largest
    scales[over] = np.nextafter(scales[over], np.float32(0))
    scales = np.maximum(scales, np.finfo(np.float32).tiny)  # below it a scale has too few bits left
    whole = torch.empty(rows.shape, dtype=torch.int8)
    for part in chunks(*rows.shape):
        whole[part] = (rows[part].float() / torch.from_numpy(scales[part])[:, None]).round_()
    return whole.view(-1).numpy().view(np.uint8), scales * (largest > 0)


def _signs(zeros: np.ndarray, level: int) -> bytes:
    """Tell which zeros are negative, one bit each; nothing if none is."""
    negative = zeros != 0
    return compress(np.packbits(negative), level) if negative.any() else b""
