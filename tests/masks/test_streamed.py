"""Magnitudes that are counted block by block choose what scores in memory choose: every element, ties and caps too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import MaskError
from secateur.masks.allocate import allocate
from secateur.masks.scores.magnitude import magnitude
from secateur.masks.streamed import DTYPES, Removal, Stream, allocate_streams, check_dtype, keep_block, magnitudes

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS = ("normal", "equal", "steps", "near", "zeros", "denormal")


def make(kind: str, size: int, dtype: str, rng: np.random.Generator) -> torch.Tensor:
    """Values that are hard on counting: ties, values that differ in their last bits, zeros of both signs."""
    values = {
        "normal": lambda: rng.normal(size=size),
        "equal": lambda: np.full(size, -0.25),
        "steps": lambda: rng.integers(-5, 6, size),
        "near": lambda: 1 + rng.integers(0, 300, size) * 2.0**-20,
        "zeros": lambda: rng.choice([0.0, -0.0, 1.0], size),
        "denormal": lambda: rng.integers(-40, 40, size) * 2.0**-149,
    }[kind]()
    return torch.from_numpy(values.astype(np.float32)).to(TYPES[dtype])


def stream(path: str, tensor: torch.Tensor, dtype: str) -> Stream:
    bits = tensor.view(torch.int32 if dtype == "F32" else torch.int16).numpy().view(DTYPES[dtype])
    return Stream(path, len(bits), dtype, lambda: iter(np.array_split(bits, 3)))


def mask_of(tensor: Stream, removal: Removal) -> np.ndarray:
    left, masks = removal.num_equal, []
    for bits in tensor.blocks():
        kept, left = keep_block(magnitudes(bits, tensor.dtype), removal, left)
        masks.append(kept)
    return np.concatenate(masks)


@settings(max_examples=150, deadline=None)
@given(
    kinds=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(["F32", "F16", "BF16"])), min_size=1, max_size=4),
    one_dtype=st.sampled_from([None, "F32", "F16", "BF16"]),
    scopes=st.permutations(["tensor", "global"]),
    sparsities=st.tuples(*[st.sampled_from([0.0, 0.1, 0.5, 0.55])] * 2),
    cap=st.sampled_from([None, 0.6, 0.9]),
    min_keep=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**16),
)
def test_two_prunings_one_after_another(kinds, one_dtype, scopes, sparsities, cap, min_keep, seed) -> None:
    rng = np.random.default_rng(seed)
    types = {f"t{index}": one_dtype or dtype for index, (_, dtype) in enumerate(kinds)}
    tensors = {
        path: make(kind, int(rng.integers(1, 400)), types[path], rng)
        for path, (kind, _) in zip(types, kinds, strict=True)
    }
    streams = {path: stream(path, tensor, types[path]) for path, tensor in tensors.items()}
    removals: dict[str, Removal] = {}
    masks: dict[str, torch.Tensor] = {}
    for scope, sparsity in zip(scopes, sparsities, strict=True):
        names = [path for path in tensors if rng.random() < 0.8] or list(tensors)
        options = {"scope": scope, "max_sparsity": cap, "min_keep": min_keep}
        chosen = [streams[path] for path in names]
        already = {path: masks[path] for path in names if path in masks}
        try:
            wanted = allocate({path: magnitude(tensors[path]) for path in names}, sparsity, already=already, **options)
        except MaskError as error:
            with pytest.raises(MaskError) as found:
                allocate_streams(chosen, sparsity, already=removals, **options)
            assert str(found.value) == str(error)
            continue
        got = allocate_streams(chosen, sparsity, already=removals, **options)
        assert list(got) == names
        for path in names:
            kept = mask_of(streams[path], got[path])
            assert np.array_equal(kept, wanted[path].numpy())
            assert got[path].num_removed == np.count_nonzero(~kept)
        removals |= got
        masks |= wanted


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(dtype: str, value: float) -> None:
    tensor = torch.tensor([1.0, value, 2.0]).to(TYPES[dtype])
    with pytest.raises(MaskError, match="w: scores hold NaN or infinity"):
        allocate_streams([stream("w", tensor, dtype)], 0.5)


def test_the_largest_numbers_are_numbers() -> None:
    for dtype, kind in TYPES.items():
        tensor = torch.tensor([torch.finfo(kind).max, -torch.finfo(kind).max, 0.0], dtype=kind)
        assert allocate_streams([stream("w", tensor, dtype)], 0.34)["w"] == Removal(0.0, 1, 1)


def test_other_types_are_refused() -> None:
    with pytest.raises(MaskError, match="w: holds F64"):
        check_dtype("w", "F64")
