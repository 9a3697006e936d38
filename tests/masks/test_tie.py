from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from secateur.errors import MaskError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.tie import is_tied, untie

Batch = dict[str, torch.Tensor]


def logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def test_untying_gives_the_head_a_copy_and_changes_no_logit(any_model: PreTrainedModel, batch: Batch) -> None:
    wanted, num_parameters = logits(any_model, batch), any_model.num_parameters()
    assert is_tied(any_model)
    untie(any_model)
    assert not is_tied(any_model)
    assert any_model.num_parameters() == num_parameters + 40 * 16
    assert torch.equal(logits(any_model, batch), wanted)


def test_nothing_ties_an_untied_head_again(any_model: PreTrainedModel, batch: Batch, tmp_path: Path) -> None:
    untie(any_model)
    mask = torch.rand(40, 16) > 0.5
    with attach(any_model, MaskSet({"lm_head.weight": mask}, {"lm_head.weight": "hold"}, "")):
        wanted = logits(any_model, batch)
        any_model.tie_weights()
        any_model.tie_weights(recompute_mapping=False)
        any_model.save_pretrained(tmp_path)
        assert not is_tied(any_model)
        assert torch.equal(logits(any_model, batch), wanted)
        loaded = type(any_model).from_pretrained(tmp_path).eval()
        untie(loaded)  # what a loader does: it only guards a head that is its own already
        for again in (any_model, copy.deepcopy(any_model), loaded):
            again.tie_weights()
            assert not is_tied(again)
            assert torch.equal(logits(again, batch), wanted)
            assert again.encoder.embed_tokens.weight is again.shared.weight


def test_an_untied_head_survives_a_resize(any_model: PreTrainedModel) -> None:
    untie(any_model)
    any_model.lm_head.weight.data.mul_(3.0)
    head = any_model.lm_head.weight.detach().clone()
    any_model.resize_token_embeddings(48, mean_resizing=False)
    assert not is_tied(any_model)
    assert any_model.lm_head.weight.shape == any_model.shared.weight.shape == (48, 16)
    assert torch.equal(any_model.lm_head.weight[:40], head)


def test_other_models_of_the_family_stay_tied(any_model: PreTrainedModel) -> None:
    twin = copy.deepcopy(any_model)
    untie(any_model)
    assert "lm_head.weight" in type(any_model)._tied_weights_keys
    twin.tie_weights()
    assert is_tied(twin)


def test_untying_twice_is_untying_once(model: PreTrainedModel) -> None:
    untie(model)
    head = model.lm_head.weight
    untie(model)
    assert model.lm_head.weight is head


def test_a_net_without_a_head_is_refused() -> None:
    assert not is_tied(nn.Linear(2, 2))
    with pytest.raises(MaskError, match="Linear has no lm_head"):
        untie(nn.Linear(2, 2))
