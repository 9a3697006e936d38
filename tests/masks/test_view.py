from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from secateur.masks.hold import Attachment, attach
from secateur.masks.mask import MaskSet
from secateur.masks.tie import is_tied, untie
from secateur.masks.view import MaskedLinear

Batch = dict[str, torch.Tensor]


def view(mask: torch.Tensor) -> MaskSet:
    return MaskSet({"lm_head.weight": mask}, {"lm_head.weight": "view"}, "")


def logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.fixture
def attachment(model: PreTrainedModel, head_mask: torch.Tensor) -> Attachment:
    return attach(model, view(head_mask))


@pytest.fixture
def with_own_head(model: PreTrainedModel, head_mask: torch.Tensor) -> PreTrainedModel:
    """The same net with a head of its own that holds table x mask: what a view must compute."""
    other = copy.deepcopy(model)
    untie(other)
    other.lm_head.weight.data.mul_(head_mask)
    return other


def test_a_view_computes_the_masked_head_and_leaves_the_table_dense(
    with_own_head: PreTrainedModel, model: PreTrainedModel, attachment: Attachment, batch: Batch
) -> None:
    assert torch.equal(logits(model, batch), logits(with_own_head, batch))
    assert torch.equal(model(**batch).logits, with_own_head(**batch).logits)
    assert is_tied(model)
    assert not (model.shared.weight == 0).any()


def test_the_tables_gradient_is_the_embeddings_plus_the_masked_heads(
    with_own_head: PreTrainedModel,
    model: PreTrainedModel,
    attachment: Attachment,
    batch: Batch,
    head_mask: torch.Tensor,
) -> None:
    for net in (model, with_own_head):
        net(**batch).loss.backward()
    wanted = with_own_head.shared.weight.grad + head_mask * with_own_head.lm_head.weight.grad
    # Both sum the same few float32 terms; autograd may add them in another order.
    torch.testing.assert_close(model.shared.weight.grad, wanted, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(model.shared.weight.grad, with_own_head.shared.weight.grad, rtol=1e-3)


@pytest.mark.parametrize("way", ["cloned", "untied", "unmasked"])
def test_that_gradient_would_show_a_head_that_is_not_a_view(
    with_own_head: PreTrainedModel, model: PreTrainedModel, batch: Batch, head_mask: torch.Tensor, way: str
) -> None:
    if way == "untied":
        untie(model)
    if way == "cloned":
        model.lm_head.weight = nn.Parameter(model.shared.weight.detach().clone())
    if way != "unmasked":
        model.lm_head = MaskedLinear(model.lm_head, head_mask)
    for net in (model, with_own_head):
        net(**batch).loss.backward()
    wanted = with_own_head.shared.weight.grad + head_mask * with_own_head.lm_head.weight.grad
    assert not torch.allclose(model.shared.weight.grad, wanted, rtol=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_removed_head_entries_go_on_moving_in_the_table(
    model: PreTrainedModel, attachment: Attachment, batch: Batch, head_mask: torch.Tensor, fused: bool
) -> None:
    before = model.shared.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=fused)
    model(**batch).loss.backward()
    optimizer.step()
    read = torch.cat([batch["input_ids"].flatten(), batch["labels"][:, :-1].flatten()]).unique()
    moved = model.shared.weight.detach() != before
    assert moved[read][~head_mask[read]].all()


def test_state_dict_keys_stay_plain_and_the_optimizer_sees_the_same_parameters(
    model: PreTrainedModel, head_mask: torch.Tensor
) -> None:
    keys, parameters = list(model.state_dict()), list(model.parameters())
    with attach(model, view(head_mask)):
        assert list(model.state_dict()) == keys
        assert all(one is two for one, two in zip(model.parameters(), parameters, strict=True))


def test_the_product_is_kept_in_eval_and_renewed_when_the_weight_changes(
    model: PreTrainedModel, attachment: Attachment, batch: Batch
) -> None:
    head = model.lm_head
    first = logits(model, batch)
    product = head._product
    logits(model, batch)
    assert head._product is product
    with torch.no_grad():
        model.shared.weight.mul_(2.0)
    assert not torch.equal(logits(model, batch), first)
    assert head._product is not product
    model.train()
    assert head._product is None


def test_zeros_written_into_the_table_are_seen(
    model: PreTrainedModel, attachment: Attachment, batch: Batch, head_mask: torch.Tensor
) -> None:
    logits(model, batch)
    table = torch.rand(40, 16) > 0.3
    with attach(model, MaskSet({"shared.weight": table}, {"shared.weight": "hold"}, "")):
        logits(model, batch)
        assert torch.equal(model.lm_head._product[1] != 0, table & head_mask)


def test_steps_in_eval_mode_are_seen_even_if_the_optimizer_raises_no_version(
    model: PreTrainedModel, attachment: Attachment, batch: Batch
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    logits(model, batch)
    model(**batch).loss.backward()
    optimizer.step()
    after = logits(model, batch)
    model.lm_head._product = None
    assert torch.equal(after, logits(model, batch))


def test_a_product_made_in_inference_mode_serves_without_gradients_and_not_with_them(
    model: PreTrainedModel, attachment: Attachment, batch: Batch
) -> None:
    with torch.inference_mode():
        first = model(**batch).logits
    assert torch.equal(logits(model, batch), first)
    model(**batch).loss.backward()
    assert model.shared.weight.grad is not None


def test_gradients_in_eval_mode_are_not_cut_off(model: PreTrainedModel, attachment: Attachment, batch: Batch) -> None:
    logits(model, batch)
    model(**batch).loss.backward()
    assert model.shared.weight.grad is not None


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_whole_and_its_own(model: PreTrainedModel, attachment: Attachment, batch: Batch, way) -> None:
    wanted = logits(model, batch)
    twin = way(model)
    assert twin.lm_head._product is None
    assert is_tied(twin)
    assert twin.lm_head.weight is not model.lm_head.weight
    assert torch.equal(logits(twin, batch), wanted)
    with torch.no_grad():
        twin.shared.weight.zero_()
    assert torch.equal(logits(model, batch), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_goes_through(model: PreTrainedModel, attachment: Attachment, batch: Batch, dtype, head_mask) -> None:
    logits(model, batch)
    model.to(dtype)
    assert is_tied(model)
    assert model.lm_head.mask.dtype == torch.bool
    assert logits(model, batch).dtype == dtype
    assert torch.equal(model.lm_head.masked_weight() != 0, head_mask)


def test_a_move_to_another_device_takes_the_mask_along(model: PreTrainedModel, attachment: Attachment) -> None:
    model.to("meta")
    assert model.lm_head.mask.device.type == "meta"
    assert model.lm_head(torch.zeros(2, 16, device="meta")).shape == (2, 40)


def test_tying_again_keeps_the_view(
    model: PreTrainedModel, attachment: Attachment, batch: Batch, head_mask: torch.Tensor
) -> None:
    wanted = logits(model, batch)
    model.tie_weights()
    assert isinstance(model.lm_head, MaskedLinear)
    assert is_tied(model)
    assert torch.equal(logits(model, batch), wanted)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_is_that_of_the_masked_head(
    with_own_head: PreTrainedModel, model: PreTrainedModel, attachment: Attachment, batch: Batch, num_beams: int
) -> None:
    options = {"input_ids": batch["input_ids"], "max_new_tokens": 8, "num_beams": num_beams, "do_sample": False}
    assert torch.equal(model.generate(**options), with_own_head.generate(**options))


def test_detach_puts_the_layer_back_with_what_it_now_holds(
    model: PreTrainedModel, batch: Batch, head_mask: torch.Tensor
) -> None:
    original, dense = model.lm_head, logits(model, batch)
    attachment = attach(model, view(head_mask))
    model.train()
    attachment.detach()
    assert model.lm_head is original
    assert original.training
    model.eval()
    assert torch.equal(logits(model, batch), dense)
    with attach(model, view(head_mask)):
        model.to(torch.bfloat16)
    assert is_tied(model)
    assert original.weight.dtype == torch.bfloat16


def test_a_view_may_lie_over_a_held_table(model: PreTrainedModel, head_mask: torch.Tensor) -> None:
    table = torch.rand(40, 16) > 0.3
    masks = MaskSet(
        {"shared.weight": table, "lm_head.weight": head_mask}, {"shared.weight": "hold", "lm_head.weight": "view"}, ""
    )
    with attach(model, masks):
        assert torch.equal(model.lm_head.masked_weight() != 0, table & head_mask)


def test_a_layer_with_a_bias_keeps_it() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    mask = torch.tensor([[True, False, True], [False, True, True]])
    wanted = nn.functional.linear(torch.ones(1, 3), net[0].weight * mask, net[0].bias)
    with attach(net, MaskSet({"0.weight": mask}, {"0.weight": "view"}, "")):
        assert torch.equal(net(torch.ones(1, 3)), wanted)
        assert "sparsity=0.3333" in repr(net)
