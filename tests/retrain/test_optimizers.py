"""The optimizers of the recipes: what decays, and that zeros of dead weights stay zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from secateur.errors import SecateurError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.recipe.names import Optimizer, words
from secateur.retrain.keeper import keep
from secateur.retrain.optimizers import OPTIMIZERS, parameter_groups


def test_the_table_is_the_words_of_the_recipe() -> None:
    assert tuple(OPTIMIZERS) == words(Optimizer)


def test_matrices_decay_and_norms_and_biases_do_not() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    groups = parameter_groups(model.named_parameters(), weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, fixed = ([names[id(parameter)] for parameter in group["params"]] for group in groups)
    assert len(decaying) + len(fixed) == len(list(model.parameters()))  # each once, the tied table too
    assert all("norm" in name or "relative_attention_bias" in name for name in fixed) and len(fixed) == 14
    assert not any("norm" in name or "relative_attention_bias" in name for name in decaying)


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_said() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.requires_grad_(False)
    groups = parameter_groups(linear.named_parameters(), weight_decay=0.1)
    assert len(groups) == 1 and groups[0]["params"][0] is linear.bias
    linear.requires_grad_(False)
    with pytest.raises(SecateurError, match="nothing to train"):
        parameter_groups(linear.named_parameters(), weight_decay=0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dead_weights_stay_zero_and_live_ones_move(name: str) -> None:
    torch.manual_seed(1)
    model = nn.Linear(8, 6)
    mask = torch.rand(6, 8) > 0.5
    masks = MaskSet({"weight": mask}, {"weight": "hold"}, "")
    with attach(model, masks):
        groups = parameter_groups(model.named_parameters(), weight_decay=0.1)
        optimizer = OPTIMIZERS[name](groups, learning_rate=0.05, momentum=0.9)
        before = model.weight.detach().clone()
        with keep(optimizer, model, masks):
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.randn(16, 8)).square().sum().backward()
                optimizer.step()
        assert not model.weight.detach()[~mask].any()
        assert bool((model.weight.detach()[mask] != before[mask]).all())
        full = [
            value
            for value in optimizer.state[model.weight].values()
            if torch.is_tensor(value) and value.shape == mask.shape
        ]
        assert len(full) == {"adamw": 2, "sgd": 1, "adafactor": 0}[name]
        assert all(not moment[~mask].any() and moment[mask].any() for moment in full)
