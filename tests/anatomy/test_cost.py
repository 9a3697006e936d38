from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from secateur.anatomy.check import anatomy_of, meta_model
from secateur.anatomy.cost import macs
from secateur.anatomy.families import FAMILIES
from secateur.errors import SecateurError

S, T = 7, 5  # source tokens, generated tokens


def test_costs_equal_a_count_by_hand(t5_config: transformers.T5Config) -> None:
    # 2 encoder layers, 1 decoder layer, d_model 16, 3 heads x 5, d_ff 24, vocabulary 40
    cost = macs(anatomy_of(meta_model(t5_config, {})), source_tokens=S, new_tokens=T)
    square, wide = 15 * 16, 24 * 16
    source = 2 * (4 * square + 2 * wide + 2 * S * 15) + 2 * square
    generated = 4 * square + 2 * (T + 1) / 2 * 15 + 2 * square + 2 * S * 15 + 2 * wide + 40 * 16
    assert cost.per_source_token == source
    assert cost.per_generated_token == generated
    assert cost.total == S * source + T * generated


def test_costs_of_classifying_equal_those_that_torch_counts(encoder_config: transformers.PretrainedConfig) -> None:
    encoder_config._attn_implementation = "eager"
    model: Any = getattr(transformers, FAMILIES[encoder_config.model_type].model_class)(encoder_config).eval()
    cost = macs(anatomy_of(model), source_tokens=S, new_tokens=T)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(input_ids=torch.full((1, S), 7))
    assert counted.get_total_flops() == 2 * cost.total
    assert cost.per_generated_token == 0


def test_costs_equal_those_that_torch_counts(writer_config: transformers.PretrainedConfig) -> None:
    config = writer_config
    config._attn_implementation = "eager"
    model: Any = getattr(transformers, FAMILIES[config.model_type].model_class)(config).eval()
    cost = macs(anatomy_of(model), source_tokens=S, new_tokens=T)
    # FlopCounterMode counts two FLOPs for a MAC.
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        encoded = model.get_encoder()(input_ids=torch.full((1, S), 7))
    cache, token = None, torch.tensor([[0]])
    with torch.no_grad(), FlopCounterMode(display=False) as decoding:
        for _ in range(T):
            step = model(encoder_outputs=encoded, decoder_input_ids=token, past_key_values=cache, use_cache=True)
            cache, token = step.past_key_values, step.logits.argmax(-1)
    assert encoding.get_total_flops() + decoding.get_total_flops() == 2 * cost.total
    weights = anatomy_of(model).select(role="cross_attention")
    cross = sum(weight.numel for weight in weights if weight.part in ("k", "v"))
    assert encoding.get_total_flops() == 2 * S * (cost.per_source_token - cross)


def test_zeros_are_taken_off_where_they_are(t5_config: transformers.T5Config) -> None:
    anatomy = anatomy_of(meta_model(t5_config, {}))
    dense = macs(anatomy, source_tokens=S, new_tokens=T)
    cross = "decoder.block.0.layer.1.EncDecAttention"
    sparse = macs(anatomy, source_tokens=S, new_tokens=T, zeros={f"{cross}.v.weight": 10, f"{cross}.o.weight": 3})
    assert dense.per_source_token - sparse.per_source_token == 10
    assert dense.per_generated_token - sparse.per_generated_token == 3


@pytest.mark.parametrize("lengths", [{"source_tokens": 0, "new_tokens": 1}, {"source_tokens": 1, "new_tokens": 0}])
def test_lengths_below_one_are_refused(t5_config: transformers.T5Config, lengths: dict[str, Any]) -> None:
    with pytest.raises(SecateurError, match="0 is not a length"):
        macs(anatomy_of(meta_model(t5_config, {})), **lengths)
