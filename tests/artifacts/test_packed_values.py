"""One tensor at a time: what is coded comes back exactly, or as near as its rounding allows."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.artifacts.packed_bytes import compress, compress_mask, decompress, decompress_mask
from secateur.artifacts.packed_values import FLOATS, Coded, decode, encode, floats, measure_rounding, stored_kind
from secateur.errors import CheckpointError

SHAPES = st.lists(st.integers(0, 40), max_size=3).map(tuple)
SPARSITIES = st.sampled_from([0.0, 0.001, 0.3, 0.9, 0.999, 1.0])
DTYPES = st.sampled_from(list(FLOATS))
PROPERTY = settings(max_examples=60, deadline=None)


def weights(shape: tuple[int, ...], sparsity: float, seed: int, *, signed: bool = False) -> torch.Tensor:
    """Normal values, one row of zeros, and zeros elsewhere; `signed`: zeros as a product with a mask leaves them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) >= sparsity
    if values.ndim and len(values) > 1:
        mask[len(values) // 2] = False
    return values * mask if signed else torch.where(mask, values, 0.0)


def raw(values: torch.Tensor) -> np.ndarray:
    return values.contiguous().view(-1).view(torch.uint8).numpy()


def there_and_back(values: torch.Tensor, kind: str, *, dtype: str = "F32") -> tuple[torch.Tensor, Coded]:
    data, shape = raw(values), tuple(values.shape)
    coded = encode(data, dtype, shape, kind=kind, level=3, where="w")
    facts = json.loads(json.dumps(coded.facts))
    restored = decode(facts, coded.parts, dtype=dtype, shape=shape)
    assert restored.size == data.size
    return floats(np.array(restored), dtype).view(shape), coded


@PROPERTY
@given(shape=SHAPES, sparsity=SPARSITIES, dtype=DTYPES, seed=st.integers(0, 1000), signed=st.booleans())
def test_own_type_is_exact_to_the_bit(shape: Any, sparsity: float, dtype: str, seed: int, signed: bool) -> None:
    values = weights(shape, sparsity, seed, signed=signed).to(FLOATS[dtype])
    restored, coded = there_and_back(values, dtype, dtype=dtype)
    assert np.array_equal(raw(restored), raw(values))
    assert coded.facts["nonzero"] == int(values.count_nonzero())
    assert coded.facts["stored"] in (coded.facts["nonzero"], values.numel())


@PROPERTY
@given(bits=st.lists(st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1 << 31])), max_size=300))
def test_every_bit_pattern_comes_back(bits: list[int]) -> None:
    """NaN with its payload, infinities, subnormal numbers, both zeros."""
    data = np.array(bits, np.uint32).view(np.uint8)
    for dtype in FLOATS:
        shape = (data.size // FLOATS[dtype].itemsize,)
        coded = encode(data, dtype, shape, kind=dtype, level=1, where="w")
        assert np.array_equal(decode(coded.facts, coded.parts, dtype=dtype, shape=shape), data)


@PROPERTY
@given(shape=SHAPES, sparsity=SPARSITIES, kind=st.sampled_from(["F16", "BF16"]), seed=st.integers(0, 1000))
def test_half_precision_rounds_to_the_nearest(shape: Any, sparsity: float, kind: str, seed: int) -> None:
    values = weights(shape, sparsity, seed, signed=True)
    restored, _ = there_and_back(values, kind)
    assert torch.equal(restored, values.to(FLOATS[kind]).float())
    assert not restored[values == 0].any()


@PROPERTY
@given(
    rows=st.integers(0, 20),
    columns=st.integers(8, 60),
    sparsity=SPARSITIES,
    dtype=DTYPES,
    seed=st.integers(0, 1000),
    exponent=st.integers(-44, 38),
)
def test_int8_is_at_most_half_a_step_off(
    rows: int, columns: int, sparsity: float, dtype: str, seed: int, exponent: int
) -> None:
    """Rows have scales of their own, so the magnitude does not matter, from subnormal numbers to a float's end."""
    values = weights((rows, columns), sparsity, seed).clamp(-3.4, 3.4) * torch.logspace(-3, 0, rows)[:, None]
    values = (values.double() * 10.0 ** (exponent if dtype != "F16" else min(exponent, 4))).to(FLOATS[dtype])
    restored, coded = there_and_back(values, "I8", dtype=dtype)
    assert restored.isfinite().all() and not restored[values == 0].any()
    before, after = values.double(), restored.double()
    largest = before.abs().amax(1, keepdim=True) if rows else before[:, :1]
    step = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    # The quotient and the scale are rounded in fp32, and the product to the tensor's own type: half of its last place.
    ulp = torch.finfo(FLOATS[dtype]).eps / 2 * largest + torch.finfo(FLOATS[dtype]).smallest_normal * 2**-10
    assert ((after - before).abs() <= step * (0.5 + 1e-4) + ulp).all()
    assert coded.facts["nonzero"] <= int(values.count_nonzero())
    if coded.facts["nonzero"]:
        whole = (after.abs().amax(1) / step[:, 0])[largest[:, 0] > 1e-30]
        assert (whole > 126.5 - 127 * torch.finfo(FLOATS[dtype]).eps).all()  # all of int8's range is used


def test_the_end_of_the_range_stays_finite() -> None:
    for dtype, limit in (("F32", 3.4028234663852886e38), ("F16", 65504.0)):
        values = torch.full((4, 8), limit).to(FLOATS[dtype])
        restored, _ = there_and_back(values, "I8", dtype=dtype)
        assert torch.allclose(restored.double(), values.double(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["I8", "F16", "BF16"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_rounded(kind: str, wrong: float) -> None:
    values = weights((4, 16), 0.5, 1)
    values[2, 3] = wrong
    with pytest.raises(CheckpointError, match=r"model: w: holds NaN or infinity.*fp32 values"):
        encode(raw(values), "F32", (4, 16), kind=kind, level=3, where="model: w")
    restored, _ = there_and_back(values, "F32")
    assert np.array_equal(raw(restored), raw(values))


def test_what_overflows_fp16_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"w: holds values too large.*bf16"):
        encode(raw(torch.full((8,), 7e4)), "F32", (8,), kind="F16", level=3, where="w")


@PROPERTY
@given(
    data=st.binary(max_size=200).map(lambda some: some[: len(some) // 8 * 8]),
    dtype=st.sampled_from(["I64", "F64", "BOOL", "F8_E4M3"]),
)
def test_other_types_are_stored_as_they_are(data: bytes, dtype: str) -> None:
    bytes_of = np.frombuffer(data, np.uint8)
    shape = (bytes_of.size // (8 if dtype in ("I64", "F64") else 1),)
    coded = encode(bytes_of, dtype, shape, kind=stored_kind("w", dtype, shape, "int8"), level=3, where="w")
    assert coded.facts["stored"] == shape[0] and coded.facts["nonzero"] <= shape[0]
    assert decode(coded.facts, coded.parts, dtype=dtype, shape=shape).tobytes() == data


def test_what_int8_leaves_alone() -> None:
    assert (
        stored_kind("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "F32", (32, 8), "int8")
        == "F32"
    )
    assert stored_kind("w", "F32", (100, 4), "int8") == "F32"  # scales would cost as much as the values
    assert stored_kind("w", "F32", (0,), "int8") == stored_kind("w", "F32", (), "int8") == "F32"
    assert stored_kind("w", "F16", (9, 3, 3), "int8") == "I8"


def test_a_mask_is_used_where_it_pays_only() -> None:
    dense = there_and_back(weights((1, 4000), 0.0, 0), "F32")[1]
    one_zero = torch.randn(1, 4000).clamp(min=0.1)
    one_zero[0, 7] = 0
    sparse = there_and_back(weights((1, 4000), 0.7, 0), "F32")[1]
    assert "mask" not in dense.parts and "mask" not in there_and_back(one_zero, "F32")[1].parts
    assert "mask" in sparse.parts
    # 70 % zeros: 0.88 bits a mask element, 28 bits a value at most
    assert sum(map(len, sparse.parts.values())) < 4000 * 0.95 / 8 + sparse.facts["nonzero"] * 3.6 + 100


@PROPERTY
@given(count=st.integers(0, 3000), share=st.sampled_from([0.0, 0.002, 0.1, 0.5, 1.0]), seed=st.integers(0, 1000))
def test_masks_come_back(count: int, share: float, seed: int) -> None:
    alive = np.random.default_rng(seed).random(count) < share
    form, size, frame = compress_mask(alive, 3)
    assert np.array_equal(decompress_mask(form, size, frame, count), alive)


def test_masks_longer_than_one_chunk_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.artifacts.packed_bytes.CHUNK", 100)
    for share in (0.0005, 0.003, 0.05):  # gaps that go on over several chunks
        alive = np.random.default_rng(1).random(20_000) < share
        form, size, frame = compress_mask(alive, 3)
        assert form == "gaps" and np.array_equal(decompress_mask(form, size, frame, len(alive)), alive)
    values = weights((37, 50), 0.6, 1, signed=True)
    for kind in ("F32", "F16", "I8"):
        restored, _ = there_and_back(values, kind)
        assert float((restored - values).abs().max()) < 0.02
        assert measure_rounding(raw(values), raw(restored), "F32") == (
            float((restored.double() - values.double()).abs().max()),
            float(values.abs().max()),
        )


def test_a_frame_of_another_size_is_refused_before_it_is_opened() -> None:
    frame = compress(np.zeros(1 << 20, np.uint8), 3)
    assert len(frame) < 200
    for size in (0, 5, 1 << 40):
        with pytest.raises(CheckpointError, match="holds other than"):
            decompress(frame, size)
    for broken in (b"", b"other", frame[:-1], frame + b"x"):
        with pytest.raises(CheckpointError):
            decompress(broken, 1 << 20)
