from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from secateur.anatomy.check import anatomy_of
from secateur.errors import MaskError
from secateur.masks.group import prune_group
from secateur.masks.hold import attach, revived
from secateur.masks.mask import MaskSet
from secateur.masks.view import MaskedLinear

WI = "encoder.block.0.layer.1.DenseReluDense.wi.weight"


def make_masks(model: PreTrainedModel, *, view: bool = False, sparsity: float = 0.6) -> MaskSet:
    anatomy, found, modes = anatomy_of(model), {}, {}
    for role in ("self_attention", "feed_forward", "lm_head") if view else ("self_attention", "feed_forward"):
        weights = anatomy.select(role=role)
        found |= prune_group(model, weights, already=MaskSet.empty(), sparsity=sparsity)
        modes |= dict.fromkeys((weight.path for weight in weights), "view" if role == "lm_head" else "hold")
    return MaskSet(found, modes, anatomy.fingerprint())


def logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attach_then_detach_is_the_identity_bit_for_bit(model: PreTrainedModel, view: bool, dtype) -> None:
    model.to(dtype)
    model.get_parameter(WI).data[0, :3] = torch.tensor([-0.0, 0.0, 1e-42])  # the signs of zeros come back too
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    attachment = attach(model, make_masks(model, view=view), anatomy_of(model))
    assert not attachment.trained
    attachment.detach()
    attachment.detach()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter.view(integers), before[name][1].view(integers))
    assert dict(model.named_modules()) == modules


def test_hold_writes_zeros_into_the_same_parameters_and_adds_nothing_to_the_forward_pass(
    model: PreTrainedModel, batch: dict[str, torch.Tensor]
) -> None:
    parameters, keys = list(model.parameters()), list(model.state_dict())
    masks = make_masks(model)
    dense = {path: model.get_parameter(path).detach().clone() for path in masks.masks}
    with attach(model, masks):
        assert all(one is two for one, two in zip(model.parameters(), parameters, strict=True))
        assert list(model.state_dict()) == keys
        for module in model.modules():
            assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
            assert type(module) is not MaskedLinear
        for path, mask in masks.masks.items():
            assert torch.equal(model.get_parameter(path), dense[path] * mask)
        assert revived(model, masks) == {}
        assert logits(model, batch).isfinite().all()


@pytest.mark.parametrize(
    "train",
    [
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1).step(),
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step(),  # raises no version
        lambda model: model.get_parameter(WI).data.mul_(1.5),  # nor does this
        lambda model: model.shared.weight.data.add_(0.1),  # a weight without a mask
        lambda model: model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()}),
    ],
)
def test_after_training_detach_leaves_the_trained_weights_with_their_zeros(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], train
) -> None:
    masks = make_masks(model)
    attachment = attach(model, masks)
    model(**batch).loss.backward()
    for path, mask in masks.masks.items():
        model.get_parameter(path).grad.mul_(mask)
    train(model)
    assert attachment.trained
    trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    attachment.detach()
    assert all(torch.equal(parameter, trained[name]) for name, parameter in model.named_parameters())
    assert revived(model, masks) == {}


def test_a_cast_is_no_training(model: PreTrainedModel) -> None:
    dense = model.get_parameter(WI).detach().clone()
    attachment = attach(model, make_masks(model))
    model.to(torch.bfloat16)
    assert not attachment.trained
    attachment.detach()
    assert torch.equal(model.get_parameter(WI), dense.to(torch.bfloat16))


def test_revived_entries_are_counted(model: PreTrainedModel) -> None:
    masks = make_masks(model, view=True)
    with attach(model, masks):
        dead = (~masks.masks[WI]).nonzero()[:2]
        model.get_parameter(WI).data[dead[0, 0], dead[0, 1]] = float("nan")
        model.get_parameter(WI).data[dead[1, 0], dead[1, 1]] = 1e-30
        assert revived(model, masks) == {WI: 2}
        original = model.lm_head
        model.lm_head = nn.Linear(16, 40, bias=False)
        assert revived(model, masks)["lm_head.weight"] == masks.removed("lm_head.weight")
        model.lm_head = original


def test_masks_are_undone_last_first(model: PreTrainedModel) -> None:
    dense = model.get_parameter(WI).detach().clone()
    first, second = make_masks(model, sparsity=0.3), make_masks(model, sparsity=0.6)
    with attach(model, first):
        half = model.get_parameter(WI).detach().clone()
        with attach(model, first & second):
            assert int((model.get_parameter(WI) == 0).sum()) == (first & second).removed(WI)
        assert torch.equal(model.get_parameter(WI), half)
    assert torch.equal(model.get_parameter(WI), dense)


@pytest.mark.parametrize(
    ("path", "shape", "mode", "message"),
    [
        ("lm_head.weight", (40, 16), "hold", "lm_head.weight is shared.weight .tied.*view.*both.*untie"),
        ("nothing.weight", (1,), "hold", "nothing.weight: the model has no such parameter"),
        ("shared.weight", (41, 16), "hold", r"shape \(41, 16\), the weight \(40, 16\)"),
        ("shared.weight", (40, 16), "view", "a view needs the weight of a linear layer"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_and_nothing_is_changed(
    model: PreTrainedModel, path: str, shape: tuple[int, ...], mode, message: str
) -> None:
    dense = model.get_parameter(WI).detach().clone()
    masks = MaskSet({WI: torch.zeros(24, 16) > 0, path: torch.zeros(shape) > 0}, {WI: "hold", path: mode}, "")
    with pytest.raises(MaskError, match=message):
        attach(model, masks)
    assert torch.equal(model.get_parameter(WI), dense)


def test_masks_of_another_model_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(MaskError, match="another model"):
        attach(model, MaskSet.empty("someone else"), anatomy_of(model))


def test_both_masks_the_table_itself(model: PreTrainedModel, head_mask: torch.Tensor) -> None:
    with attach(model, MaskSet({"shared.weight": head_mask}, {"shared.weight": "hold"}, "")):
        assert model.lm_head.weight is model.shared.weight
        assert torch.equal(model.lm_head.weight == 0, ~head_mask)
