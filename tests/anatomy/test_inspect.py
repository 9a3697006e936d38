from __future__ import annotations

import json

import pytest
import torch
from transformers import PretrainedConfig, T5Config, T5ForConditionalGeneration

from secateur.anatomy.check import meta_model
from secateur.anatomy.inspect import describe

LENGTHS = {"source_tokens": 7, "new_tokens": 5}


def test_a_dense_model(config: PretrainedConfig) -> None:
    described = describe(meta_model(config, {}), **LENGTHS)
    assert json.loads(json.dumps(described)) == described
    owned = [weight for weight in described["weights"] if weight["tied_to"] is None]
    assert sum(weight["share"] for weight in owned) == pytest.approx(1.0)
    assert sum(weight["num_elements"] for weight in owned) == described["counts"]["num_parameters"]
    assert described["counts"]["num_bytes"] == 4 * described["counts"]["num_parameters"]
    assert described["macs"]["total"] > 0


def test_on_meta_nothing_is_said_about_values(t5_config: T5Config) -> None:
    described = describe(meta_model(t5_config, {}), **LENGTHS)
    assert {weight["sparsity"] for weight in described["weights"]} == {None}
    assert {weight["nonzero"] for weight in described["weights"]} == {None}
    assert described["macs_nonzero"] is None
    assert described["counts"]["counted_ratio"] is None
    assert described["counts"]["stored_ratio"] is None


def test_zeros_of_a_live_model_are_counted_once_per_tensor(t5_config: T5Config) -> None:
    model = T5ForConditionalGeneration(t5_config).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model.shared.weight[:10] = 0.0
        model.get_parameter("encoder.block.0.layer.0.SelfAttention.q.weight").fill_(0.0)
    described = describe(model, **LENGTHS)
    weights = {weight["path"]: weight for weight in described["weights"]}
    assert weights["lm_head.weight"]["tied_to"] == "shared.weight"
    assert weights["lm_head.weight"]["sparsity"] == weights["shared.weight"]["sparsity"] == 0.25
    assert weights["encoder.block.0.layer.0.SelfAttention.q.weight"]["sparsity"] == 1.0
    assert weights["encoder.block.0.layer.0.SelfAttention.k.weight"]["nonzero"] == 15 * 16
    counts, total = described["counts"], sum(parameter.numel() for parameter in model.parameters())
    assert counts["counted_ratio"] == counts["stored_ratio"] == 1 - (10 * 16 + 15 * 16) / total
    assert counts["num_bytes"] == 2 * total
    assert described["macs"]["per_source_token"] - described["macs_nonzero"]["per_source_token"] == 15 * 16
    assert described["macs"]["per_generated_token"] - described["macs_nonzero"]["per_generated_token"] == 10 * 16
