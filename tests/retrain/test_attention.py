"""Attention of our own is transformers' own without dropout, and drops probabilities as often as it says with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from secateur.retrain.attention import NAME, attend, attention_of

SIZES = {"vocab_size": 19, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2}
MODELS = [
    (T5ForConditionalGeneration, T5Config),
    (MT5ForConditionalGeneration, MT5Config),
    (UMT5ForConditionalGeneration, UMT5Config),
]


def make(model: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return model(config(**SIZES, decoder_start_token_id=0)).train()


def step(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    sources, mask = torch.arange(1, 13).view(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    loss = model(input_ids=sources, attention_mask=mask, labels=sources[:, :4].contiguous()).loss
    loss.backward()
    return loss.detach(), {name: item.grad for name, item in model.named_parameters() if item.grad is not None}


@pytest.mark.parametrize(("model", "config"), MODELS)
def test_without_dropout_every_bit_is_that_of_transformers(model: Any, config: Any) -> None:
    live = make(model, config)
    for module in live.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    given = live.config._attn_implementation
    live.set_attn_implementation("eager")
    loss, gradients = step(live)
    live.set_attn_implementation(given)
    with attention_of(live, "eager", device="cpu"):
        assert live.config._attn_implementation == NAME
        ours, own = step(live)
    assert live.config._attn_implementation == given != "eager"
    assert torch.equal(ours, loss) and own.keys() == gradients.keys()
    assert all(torch.equal(own[name], gradients[name]) for name in own)


def test_with_dropout_it_acts_in_training_alone_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    query, key = torch.zeros(4, 2, 64, 8), torch.zeros(4, 2, 512, 8)  # every source is seen alike
    value = torch.ones(4, 2, 512, 8)
    module.train()
    seen, kept = attend(module, query, key, value, None, dropout=0.25)
    share = float((kept == 0).float().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / kept.numel()) ** 0.5
    assert seen.shape == (4, 64, 2, 8) and float(seen.mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.allclose(attend(module.eval(), query, key, value, None, dropout=0.25)[0], torch.ones(()))


@pytest.mark.parametrize(("attention", "device"), [("sdpa", "cpu"), ("eager", "cuda"), ("sdpa", "cuda")])
def test_elsewhere_transformers_own_is_used(attention: str, device: str) -> None:
    live = make(*MODELS[0])
    given = live.config._attn_implementation
    with attention_of(live, attention, device=device):
        assert live.config._attn_implementation == attention
    assert live.config._attn_implementation == given
