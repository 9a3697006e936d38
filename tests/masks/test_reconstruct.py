"""Second-order updates: what stays makes up for what goes, on what the adjusted layers before it give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nets import ENCODERS, FAMILIES, make, make_layer_normed
from secateur.anatomy.check import anatomy_of
from secateur.errors import MaskError
from secateur.masks import reconstruct as module
from secateur.masks.moments import IGNORED, Moment, damp, reads_source
from secateur.masks.reconstruct import adjust, aimed, reconstruct
from secateur.masks.statistics import gather_statistics

ROLES = ("self_attention", "cross_attention", "feed_forward")


def moment_of(size: int, seed: int, rank: int | None = None) -> Tensor:
    """Mean of x x^T of features that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(64, rank or size, generator=generator) @ torch.randn(rank or size, size, generator=generator)
    return read.T @ read / len(read)


def error(weight: Tensor, other: Tensor, moment: Tensor) -> float:
    difference = (weight - other).double()
    return float(((difference @ moment.double()) * difference).sum())


@given(size=st.integers(2, 40), rows=st.integers(1, 5), seed=st.integers(0, 1000), share=st.floats(0.1, 0.9))
def test_adjusting_is_never_worse_than_zeroing(size: int, rows: int, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, moment = torch.randn(rows, size, generator=generator), moment_of(size, seed)
    mask = torch.rand(rows, size, generator=generator) > share
    adjusted = adjust(weight, mask, moment)
    assert not adjusted[~mask].any()
    damped = damp(moment)  # what is minimised
    assert error(weight, adjusted, damped) <= error(weight, weight * mask, damped) * (1 + 1e-4) + 1e-6


def test_one_column_is_removed_as_well_as_can_be() -> None:
    weight, moment = torch.randn(3, 12, generator=torch.Generator().manual_seed(1)), moment_of(12, 2)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[:, 0] = False  # the first column: all others come after it and can make up for it
    damped = damp(moment)
    best = weight.clone()
    best[:, 1:] += weight[:, :1] * torch.linalg.solve(damped[1:, 1:], damped[1:, 0])
    best[:, 0] = 0
    torch.testing.assert_close(adjust(weight, mask, moment), best, rtol=1e-4, atol=1e-5)


def test_any_mask_comes_near_the_best() -> None:
    weight, moment = torch.randn(6, 20, generator=torch.Generator().manual_seed(1)), moment_of(20, 2)
    mask = torch.rand(6, 20, generator=torch.Generator().manual_seed(3)) > 0.5
    damped = damp(moment)
    best = torch.zeros_like(weight)
    for row in range(len(weight)):
        kept = mask[row]
        best[row, kept] = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ weight[row])
    assert error(weight, adjust(weight, mask, moment), damped) <= 1.01 * error(weight, best, damped)


def test_nothing_to_remove_changes_nothing_and_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = torch.randn(4, 30, generator=torch.Generator().manual_seed(3)), moment_of(30, 4)
    assert torch.equal(adjust(weight, torch.ones_like(weight, dtype=torch.bool), moment), weight)
    mask = torch.rand(4, 30, generator=torch.Generator().manual_seed(5)) > 0.5
    whole = adjust(weight, mask, moment)
    monkeypatch.setattr(module, "BLOCK", 7)
    torch.testing.assert_close(adjust(weight, mask, moment), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_features_that_say_the_same_or_nothing_are_no_trouble(rank: int) -> None:
    moment = moment_of(8, 6, rank=rank)
    moment[2], moment[:, 2] = 0, 0  # never read
    weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(7))
    mask = torch.rand(2, 8, generator=torch.Generator().manual_seed(8)) > 0.5
    assert bool(adjust(weight, mask, moment).isfinite().all())


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(9)
    found = []
    for rows, source, target in ((3, 7, 5), (2, 4, 6)):
        batch = {
            "input_ids": torch.randint(1, 30, (rows, source), generator=generator),
            "attention_mask": torch.ones(rows, source, dtype=torch.long),
            "labels": torch.randint(1, 30, (rows, target), generator=generator),
        }
        batch["attention_mask"][0, -2:], batch["labels"][-1, -2:] = 0, IGNORED
        found.append(batch)
    return found


def forward(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(batch["labels"]),
        use_cache=False,
    ).logits


def masks_of(model: nn.Module) -> dict[Any, Tensor]:
    generator = torch.Generator().manual_seed(10)
    return {
        weight: torch.rand(weight.shape, generator=generator) > 0.5
        for weight in anatomy_of(model).weights
        if weight.role in ROLES and not (weight.stack == "decoder" and weight.layer == 0)  # one layer is left out
    }


def reference(model: nn.Module, masks: dict[Any, Tensor], dense: nn.Module | None = None) -> None:
    """The same by whole passes, and no layer replayed; `dense` is what the layers should give what they give there."""
    blocks: dict[tuple[int, int], list[Any]] = {}
    for weight in masks:
        blocks.setdefault((0 if weight.stack == "encoder" else 1, weight.layer), []).append(weight)
    for _, members in sorted(blocks.items()):
        moments = {weight: Moment(model.get_parameter(weight.path)) for weight in members}
        for batch in batches():
            found = reads(model, members, batch)
            wanted = reads(dense, members, batch) if dense else {}
            for weight, moment in moments.items():
                moment.add(found[weight])
                if dense:
                    moment.add_cross(wanted[weight].T @ found[weight])
        for weight, moment in moments.items():
            parameter, mean = model.get_parameter(weight.path), moment.mean("")
            parameter.copy_(adjust(aimed(parameter, mean, moment.cross), masks[weight], mean))


def reads(model: nn.Module, weights: list[Any], batch: dict[str, Tensor]) -> dict[Any, Tensor]:
    found, handles = {}, []
    for weight in weights:
        tokens = batch["attention_mask"].bool() if reads_source(weight) else batch["labels"] != IGNORED

        def note(_: Any, read: Any, weight: Any = weight, tokens: Tensor = tokens) -> None:
            found[weight] = read[0][tokens]

        handles.append(model.get_submodule(weight.path.rpartition(".")[0]).register_forward_pre_hook(note))
    forward(model, batch)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("aim", ["layer", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layers_are_done_one_after_the_other(family: str, aim: Any) -> None:
    model, twin = make(family), make(family)
    masks = masks_of(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    calls: list[str] = []
    for name, layer in [*model.encoder.block.named_children(), *model.decoder.block.named_children()]:
        layer.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    reconstruct(model, masks, batches(), forward=forward, aim=aim)
    reference(twin, masks, make(family) if aim == "dense" else None)
    paths = {weight.path for weight in masks}
    for (name, mine), (_, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if name in paths:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        else:
            assert torch.equal(mine, before[name]), name
    for weight, mask in masks.items():
        assert not model.get_parameter(weight.path)[~mask].any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("aim", ["layer", "dense"])
@torch.no_grad()
def test_the_model_is_left_as_it_was(training: bool, aim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("t5-v1.0").train(training)
    reconstruct(model, masks_of(model), batches(), forward=forward, aim=aim)
    assert model.training is training
    model.eval()
    twin = make("t5-v1.0")
    twin.load_state_dict(model.state_dict())
    for batch in batches():
        assert torch.equal(forward(model, batch), forward(twin, batch))
    assert not any("forward" in vars(part) or part._forward_hooks for part in model.modules())

    def broken(*_: Any) -> Tensor:
        raise MaskError("broken")

    monkeypatch.setattr(module, "adjust", broken)
    with pytest.raises(MaskError, match="broken"):
        reconstruct(model, masks_of(model), batches(), forward=forward, aim=aim)
    assert not any("forward" in vars(part) or part._forward_hooks for part in model.modules())


@torch.no_grad()
def test_a_finished_layer_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("t5-v1.0")
    masks = {weight: mask for weight, mask in masks_of(model).items() if weight.stack == "encoder"}
    first = model.encoder.block[0].layer[0].SelfAttention.q
    calls: list[int] = []
    first.register_forward_hook(lambda *_: calls.append(1))
    reconstruct(model, masks, batches(), forward=forward)
    assert len(calls) == 2 * len(batches())  # once to see what it reads, once for what it gives when it is adjusted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [(), (0,), (1,)])
@pytest.mark.parametrize("aim", ["layer", "dense"])
@torch.no_grad()
def test_an_encoder_that_is_done_is_not_computed_again(family: str, layers: tuple[int, ...], aim: Any) -> None:
    model, twin = make(family), make(family)
    masks = {
        weight: mask for weight, mask in masks_of(model).items() if weight.stack == "decoder" or weight.layer in layers
    }
    masks |= {
        weight: torch.rand(weight.shape, generator=torch.Generator().manual_seed(11)) > 0.5
        for weight in anatomy_of(model).weights
        if weight.role in ROLES and weight.stack == "decoder" and weight.layer == 0
    }
    calls: list[int] = []
    last = next(weight for weight in anatomy_of(model).weights if weight.stack == "encoder" and weight.layer == 1)
    model.get_submodule(last.path.rpartition(".")[0]).register_forward_hook(lambda *_: calls.append(1))
    reconstruct(model, masks, batches(), forward=forward, aim=aim)
    # Where it is adjusted itself: once to see what it reads, once for what it gives then; before that for what it gave.
    assert len(calls) == ((2 if 1 in layers else 1) + (aim == "dense")) * len(batches())
    reference(twin, masks, make(family) if aim == "dense" else None)
    for weight in masks:
        mine, theirs = model.get_parameter(weight.path), twin.get_parameter(weight.path)
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert not any("forward" in vars(part) for part in model.modules())


@torch.no_grad()
def test_what_cannot_be_adjusted_is_refused() -> None:
    model = make("t5-v1.0")
    anatomy = anatomy_of(model)
    mask = torch.ones(anatomy["lm_head.weight"].shape, dtype=torch.bool)
    with pytest.raises(MaskError, match="tied"):
        reconstruct(model, {anatomy["lm_head.weight"]: mask}, batches(), forward=forward)
    with pytest.raises(MaskError, match="this is none"):
        reconstruct(model, {anatomy["shared.weight"]: mask}, batches(), forward=forward)
    with pytest.raises(MaskError, match="at least one calibration batch"):
        reconstruct(model, masks_of(model), [], forward=forward)


@torch.no_grad()
def test_the_statistics_are_those_of_the_moment() -> None:
    model = make("t5-v1.0")
    weight = next(weight for weight in anatomy_of(model).weights if weight.part == "wi")
    found = gather_statistics(
        model, {weight: ("input_inverse", "output_power")}, batches(), loss=lambda model, batch: forward(model, batch)
    )[weight.path]
    moment, handles = Moment(model.get_parameter(weight.path)), []
    linear = model.get_submodule(weight.path.rpartition(".")[0])
    outputs: list[Tensor] = []
    for batch in batches():
        tokens = batch["attention_mask"].bool()
        handles.append(linear.register_forward_pre_hook(lambda _, read, tokens=tokens: moment.add(read[0][tokens])))
        handles.append(linear.register_forward_hook(lambda *found, tokens=tokens: outputs.append(found[2][tokens])))
        forward(model, batch)
        while handles:
            handles.pop().remove()
    damped = moment.mean("") + 0.01 * moment.mean("").diagonal().mean() * torch.eye(weight.shape[1])
    torch.testing.assert_close(found["input_inverse"], damped.inverse().diagonal(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found["output_power"], torch.cat(outputs).square().sum(1).mean().view(1))


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_the_second_layer_of_a_classifiers_head_aims_at_the_dense_model_too(family: str) -> None:
    model, dense = make_layer_normed(family), make_layer_normed(family)
    matrices = [weight for weight in anatomy_of(model).weights if weight.layer is None and len(weight.shape) == 2]
    *_, first, second = [weight for weight in matrices if _is_linear(model, weight)]
    masks = {
        first: torch.rand(first.shape, generator=torch.Generator().manual_seed(3)) > 0.7,
        second: torch.ones(second.shape, dtype=torch.bool),
    }
    before = model.get_parameter(second.path).clone()

    def classify(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def read_of(model: Any) -> Tensor:
        read: list[Tensor] = []
        layer = model.get_submodule(second.path.rpartition(".")[0])
        handle = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        for batch in batches():
            classify(model, batch)
        handle.remove()
        return torch.cat(read)

    reconstruct(model, masks, batches(), forward=classify, aim="dense")
    now, wanted = read_of(model), read_of(dense)
    expected = aimed(before, now.T @ now / len(now), wanted.T @ now / len(now))
    # Five texts do not tell every weight, but what the layer gives for them.
    torch.testing.assert_close(now @ model.get_parameter(second.path).T, now @ expected.T, rtol=1e-3, atol=1e-4)


def _is_linear(model: nn.Module, weight: Any) -> bool:
    return isinstance(model.get_submodule(weight.path.rpartition(".")[0]), nn.Linear)


def test_batches_of_one_length_share_what_is_equal() -> None:
    replay = module._Replay(nn.Identity(), [], lambda model, batch: None, both=False)
    states, bias = [torch.rand(2, 3) for _ in range(2)], [torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1, 3)]
    kept = [replay._sharing((states[0], bias[0], None)), replay._sharing((states[1], bias[1], bias[2]))]
    assert kept[1][1] is kept[0][1] is bias[0] and kept[1][2] is bias[2] and kept[0][2] is None
    assert kept[0][0] is states[0] and kept[1][0] is states[1]
    assert replay._sharing(states[0]) is states[0]
