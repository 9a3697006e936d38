"""Dropout from bytes is dropout: the rate, the mean, the generator; and a model gets its own back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from secateur.retrain.dropout import ByteDropout, dropout_rate


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.999])
def test_rate_and_mean(rate: float) -> None:
    torch.manual_seed(1)
    count = 400_001  # no multiple of 8
    out = ByteDropout(rate)(torch.ones(count))
    dropped = min(round(rate * 256), 255) / 256
    values = sorted(set(out.tolist()))
    assert len(values) == 2 and values[0] == 0.0 and values[1] == pytest.approx(1 / (1 - dropped), rel=1e-6)
    # Five standard deviations of a count of independent draws.
    share, deviation = float((out == 0).float().mean()), (dropped * (1 - dropped) / count) ** 0.5
    assert abs(share - dropped) < 5 * deviation
    assert abs(float(out.mean()) - 1) < 5 * deviation / (1 - dropped)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(1)
    kept = (ByteDropout(0.5)(torch.ones(1 << 20)) > 0).float()
    for distance in (1, 2, 7, 8, 64):
        both = float((kept[:-distance] * kept[distance:]).mean())
        assert abs(both - 0.25) < 5 * (0.25 * 0.75 / (1 << 20)) ** 0.5


def test_it_follows_from_the_global_generator_and_only_then_draws() -> None:
    values = torch.randn(7, 5)
    layer = ByteDropout(0.5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, two = layer(values), layer(values)
    torch.set_rng_state(state)
    assert torch.equal(layer(values), one) and not torch.equal(one, two)
    state = torch.get_rng_state()
    assert layer.eval()(values) is values and ByteDropout(0.0).train()(values) is values
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_and_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    values = torch.ones(6, 9, dtype=dtype, requires_grad=True)
    out = ByteDropout(0.25)(values)
    out.sum().backward()
    assert out.dtype == dtype and values.grad is not None and torch.equal(values.grad, out.detach())


def rates(model: nn.Module) -> list[object]:
    modules = [
        (name, type(module), module.training, getattr(module, "p", None), getattr(module, "dropout", None))
        for name, module in model.named_modules()
    ]
    return [tuple(item if not isinstance(item, nn.Module) else id(item) for item in row) for row in modules]


@pytest.mark.parametrize("rate", [None, 0.0, 0.3])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_gets_its_own_dropout_back(rate: float | None, device: str) -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    before, names = rates(model), list(model.state_dict())
    with pytest.raises(KeyError), dropout_rate(model, rate, device=device):
        inside = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        assert len(inside) > 5 and {type(module) for module in inside} == {
            ByteDropout if device == "cpu" else nn.Dropout
        }
        assert {module.p for module in inside} == {0.1 if rate is None else rate}
        attention = {
            module.dropout for module in model.modules() if isinstance(getattr(module, "dropout", None), float)
        }
        assert attention == {0.1 if rate is None else rate}
        assert list(model.state_dict()) == names
        raise KeyError
    assert rates(model) == before


@pytest.mark.parametrize("own", [{"activation_dropout": 0.5}, {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9}])
def test_a_rate_of_0_drops_nothing_of_a_bart(own: dict[str, float]) -> None:
    sizes = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_layers": 4, "decoder_layers": 4}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartForConditionalGeneration(BartConfig(vocab_size=19, dropout=0.5, **sizes, **heads, **own)).train()
    tokens = torch.arange(3, 15).view(2, 6)
    before = [(module, {**vars(module)}) for module in model.modules()]
    with dropout_rate(model, 0.0, device="cpu"):
        first, second = (model(input_ids=tokens, labels=tokens).logits for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(*(model(input_ids=tokens, labels=tokens).logits for _ in range(2)))
    kept = ("dropout", "activation_dropout", "layerdrop")
    assert all(vars(module).get(name) == was.get(name) for module, was in before for name in kept)


def test_a_switch_to_eval_inside_the_block_stays() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).train()
    with dropout_rate(model, None, device="cpu"):
        model.eval()
    assert type(model[0]) is nn.Dropout and not model[0].training
