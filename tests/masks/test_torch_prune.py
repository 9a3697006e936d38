"""The same masks as torch.nn.utils.prune, once and round after round."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn.utils import prune

from nets import make
from secateur.anatomy.check import anatomy_of
from secateur.masks.group import prune_group
from secateur.masks.mask import MaskSet


@pytest.mark.parametrize("role", ["self_attention", "cross_attention", "feed_forward", "lm_head"])
@pytest.mark.parametrize("sparsities", [(0.7,), (0.3, 0.55, 0.8)])
def test_global_magnitude_is_torchs_global_l1(role: str, sparsities: tuple[float, ...]) -> None:
    """Torch counts the share of what remains; ours is of the original weights."""
    model = make("t5-v1.0").float()
    theirs = copy.deepcopy(model)
    weights = anatomy_of(model).select(role=role)
    layers = [(theirs.get_submodule(weight.path.rpartition(".")[0]), "weight") for weight in weights]
    masks = MaskSet.empty()
    for before, after in pairwise((0.0, *sparsities)):
        found = prune_group(model, weights, already=masks, sparsity=after, score="magnitude", scope="global")
        masks = MaskSet(found, dict.fromkeys(found, "view"), "")
        total, gone = sum(weight.numel for weight in weights), sum(int((m == 0).sum()) for m in torch_masks(layers))
        amount = round(after * total) - gone  # a number: shares would be rounded of what remains
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=amount)
        assert before < after
        for mask, other in zip(found.values(), torch_masks(layers), strict=True):
            assert torch.equal(mask, other.bool())


def torch_masks(layers: list[tuple[torch.nn.Module, str]]) -> list[torch.Tensor]:
    return [layer.weight_mask for layer, _ in layers if hasattr(layer, "weight_mask")]
