"""Neurons by heads: the number is exact, limits hold, and a layer with more heads keeps no fewer neurons."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from secateur.anatomy.check import anatomy_of
from secateur.anatomy.units import places
from secateur.errors import MaskError
from secateur.masks.by_heads import neurons_by_heads
from secateur.masks.mask import MaskSet
from secateur.masks.structure import alive_units, prune_units

LAYERS = st.lists(st.integers(0, 12), min_size=1, max_size=7)


@settings(deadline=None, max_examples=60)
@given(LAYERS, st.integers(3, 40), st.integers(1, 3), st.floats(0, 1))
def test_the_number_is_exact_and_follows_the_heads(heads: list[int], size: int, least: int, share: float) -> None:
    count = len(heads)
    number = round(count * least + share * (count * size - count * least))
    kept = neurons_by_heads([size] * count, heads, number, least=least)
    assert sum(kept) == number
    assert all(least <= each <= size for each in kept)
    for one, other in product(range(count), repeat=2):
        if heads[one] > heads[other]:
            assert kept[one] >= kept[other]


def test_too_few_are_refused() -> None:
    with pytest.raises(MaskError, match="2 of 24 neurons are to stay, and each of 3 layers keeps 1 at least"):
        neurons_by_heads([8, 8, 8], [1, 1, 1], 2)


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        sizes = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
        return BertForSequenceClassification(
            BertConfig(**sizes, intermediate_size=20, max_position_embeddings=8)
        ).eval()


def test_neurons_go_where_heads_went(model: Any) -> None:
    anatomy = anatomy_of(model)
    heads = places(anatomy, "head")
    masks = MaskSet.empty(anatomy.fingerprint())
    for place, share in zip(heads, (0.0, 0.5, 0.75), strict=True):
        found = prune_units(model, anatomy, [place], already=masks, sparsity=share, score="random")
        masks = MaskSet({**masks.masks, **found}, dict.fromkeys({**masks.masks, **found}, "hold"), masks.owner)
    neurons = places(anatomy, "ffn_neuron")
    already = masks
    for sparsity in (0.2, 0.5):  # as a schedule does: what is gone stays gone
        found = prune_units(
            model, anatomy, neurons, already=already, sparsity=sparsity, score="l2_norm", width="by_heads"
        )
        later = MaskSet({**already.masks, **found}, dict.fromkeys({**already.masks, **found}, "hold"), already.owner)
        before, after = ([alive_units(place, some.masks) for place in neurons] for some in (already, later))
        assert all(bool((old | ~new).all()) for old, new in zip(before, after, strict=True))
        already = later
    assert [int(alive.sum()) for alive in after] == [17, 9, 4]
    with pytest.raises(MaskError, match="by_heads is for neurons, and these are units of kind head"):
        prune_units(model, anatomy, heads, already=already, sparsity=0.5, score="l2_norm", width="by_heads")
