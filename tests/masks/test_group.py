from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from secateur.anatomy.check import anatomy_of
from secateur.errors import MaskError
from secateur.masks.group import prune_group
from secateur.masks.mask import MaskSet
from secateur.masks.scores import SCORES, needs
from secateur.masks.statistics import BACKWARD, GRADIENTS, LEARNED

EMPTY = MaskSet.empty()
WHOLE = (
    *GRADIENTS,
    *LEARNED,
)  # the statistics with one number per weight; the others have one per input, or per output


def removed(masks: dict[str, torch.Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def as_set(masks: dict[str, torch.Tensor]) -> MaskSet:
    return MaskSet(masks, dict.fromkeys(masks, "hold"), "")


@pytest.mark.parametrize("score", list(SCORES))
@pytest.mark.parametrize("role", ["self_attention", "cross_attention", "feed_forward", "lm_head", "embedding"])
def test_a_group_loses_exactly_its_share_and_the_model_is_not_changed(
    any_model: PreTrainedModel, role, score: str
) -> None:
    before = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    weights = anatomy_of(any_model).select(role=role)
    statistics = {
        weight.path: {
            name: 0.1
            + torch.rand(weight.shape if name in WHOLE else weight.shape[:1] if name in BACKWARD else weight.shape[-1:])
            for name in needs(score)
        }
        for weight in weights
    }
    masks = prune_group(any_model, weights, already=EMPTY, sparsity=0.7, score=score, seed=1, statistics=statistics)
    assert list(masks) == [weight.path for weight in weights]
    assert all(masks[weight.path].shape == weight.shape for weight in weights)
    assert removed(masks) == round(0.7 * sum(weight.numel for weight in weights))
    assert all(torch.equal(tensor, before[name]) for name, tensor in any_model.state_dict().items())


def test_random_masks_do_not_depend_on_the_order_of_the_tensors(model: PreTrainedModel) -> None:
    weights = anatomy_of(model).select(role="feed_forward")
    options = {"already": EMPTY, "sparsity": 0.5, "score": "random", "seed": 7}
    forth, back = prune_group(model, weights, **options), prune_group(model, weights[::-1], **options)
    assert all(torch.equal(forth[path], back[path]) for path in forth)


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.6},
        {"sparsity": 0.6, "scope": "row"},
        {"sparsity": 0.5, "unit": "row"},
        {"sparsity": 0.5, "unit": "column", "scope": "tensor"},
        {"sparsity": 0.5, "block": (4, 4)},
        {"pattern": "2:4"},
        {"pattern": "2:4", "sparsity": 0.5},
    ],
)
def test_every_kind_of_group_is_nested_in_what_was_removed_before(model: PreTrainedModel, options: dict) -> None:
    weights = anatomy_of(model).select(role="feed_forward")
    before = prune_group(model, weights, already=EMPTY, sparsity=0.2, score="random", seed=3)
    after = prune_group(model, weights, already=as_set(before), **options)
    assert all(bool((after[path] <= before[path]).all()) for path in before)
    again = prune_group(model, weights, already=as_set(after), **options)
    assert all(torch.equal(again[path], after[path]) for path in after)


def test_scope_row_is_the_same_of_every_row_and_for_single_weights_alone(model: PreTrainedModel) -> None:
    weights = anatomy_of(model).select(role="feed_forward")
    masks = prune_group(model, weights, already=EMPTY, sparsity=0.6, scope="row")
    for mask in masks.values():
        lost = (~mask).sum(dim=1)
        assert int(lost.sum()) == round(0.6 * mask.numel()) and int(lost.max() - lost.min()) <= 1
    for options in ({"unit": "column"}, {"block": (4, 4)}):
        with pytest.raises(MaskError, match="is for single weights"):
            prune_group(model, weights, already=EMPTY, sparsity=0.6, scope="row", **options)


def test_rows_are_removed_whole_and_counted(model: PreTrainedModel) -> None:
    weights = anatomy_of(model).select(role="feed_forward", match="*.wi.weight")
    masks = prune_group(model, weights, already=EMPTY, sparsity=0.25, unit="row", scope="tensor")
    for path, mask in masks.items():
        rows = mask.any(dim=1)
        assert int((~rows).sum()) == 6
        assert torch.equal(mask, rows[:, None].expand_as(mask))
        norms = model.get_parameter(path).detach().abs().mean(dim=1)
        assert norms[rows].min() >= norms[~rows].max()


def test_a_pattern_leaves_n_of_every_m(model: PreTrainedModel) -> None:
    weights = anatomy_of(model).select(role="feed_forward")
    for mask in prune_group(model, weights, already=EMPTY, pattern="1:4").values():
        assert (mask.view(-1, 4).sum(dim=1) == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither"),
        ({"pattern": "2:4", "sparsity": 0.4}, "2:4 removes 0.5, sparsity says 0.4"),
        ({"pattern": "2-4"}, 'write "n:m"'),
        ({"pattern": "2:4", "unit": "row", "min_keep": 1}, "unit, min_keep cannot act"),
        ({"pattern": "2:5"}, r"does not divide by 5 \(shape"),
        ({"sparsity": 0.5, "unit": "row", "block": (2, 2)}, "exclude each other"),
        ({"sparsity": 0.5, "block": (5, 5)}, r"wi\.weight: shape \(24, 16\) does not divide into blocks of 5 x 5"),
        ({"sparsity": 0.5, "score": "magnitud"}, "Did you mean"),
    ],
)
def test_what_cannot_be_done_is_refused(model: PreTrainedModel, options: dict, message: str) -> None:
    weights = anatomy_of(model).select(role="feed_forward")
    with pytest.raises(MaskError, match=message):
        prune_group(model, weights, already=EMPTY, **options)


def test_a_diverged_weight_is_named(model: PreTrainedModel) -> None:
    weights = anatomy_of(model).select(role="cross_attention")
    model.get_parameter(weights[1].path).data[0, 0] = float("nan")
    for options in ({"sparsity": 0.5}, {"pattern": "2:4"}):
        with pytest.raises(MaskError, match=weights[1].path):
            prune_group(model, weights, already=EMPTY, **options)
