from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import FAMILIES, make, make_layer_normed
from secateur.anatomy.check import anatomy_of
from secateur.errors import MaskError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.masks.moments import IGNORED
from secateur.masks.scores import needs, score_weight
from secateur.masks.statistics import BACKWARD, GRADIENTS, INPUTS, OUTPUTS, gather_statistics
from secateur.masks.tie import is_tied

LINEAR = ("self_attention", "cross_attention", "feed_forward", "lm_head")


def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(
        logits(model, batch).flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED
    )


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    return model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=decoder_input_ids,
        use_cache=False,
    ).logits


def class_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"][:, 0] % logits.shape[1])


def batch_of(*rows: tuple[list[int], list[int]], pad: int = 0) -> dict[str, Tensor]:
    """Rows of source and target ids, padded to the longest and `pad` more."""
    source, target = (max(len(row[side]) for row in rows) + pad for side in (0, 1))
    batch = {
        "input_ids": torch.zeros(len(rows), source, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), source, dtype=torch.long),
        "labels": torch.full((len(rows), target), IGNORED),
    }
    for index, (ids, labels) in enumerate(rows):
        batch["input_ids"][index, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][index, : len(ids)] = 1
        batch["labels"][index, : len(labels)] = torch.tensor(labels)
    return batch


ONE, TWO = ([5, 9, 3, 1], [7, 8, 1]), ([4, 1], [6, 2, 11, 12, 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_end_where_the_last_layer_is_noted(family: str) -> None:
    model = make(family)
    wanted = {weight: {*INPUTS, *needs("obs")} for weight in wanted_of(model) if weight.role == "self_attention"}
    lost: list[Tensor] = []

    def counted(model: Any, batch: dict[str, Tensor]) -> Tensor:
        lost.append(loss(model, batch))
        return lost[-1]

    batches = [batch_of(ONE), batch_of(ONE, TWO)]
    short = gather_statistics(model, wanted, batches, loss=counted)
    assert not lost
    everything = wanted_of(model, *INPUTS, *needs("obs"), *GRADIENTS)  # gradients need the whole pass
    whole = gather_statistics(model, everything, batches, loss=counted)
    assert len(lost) == len(batches)
    for path, statistics in short.items():
        for name, value in statistics.items():
            torch.testing.assert_close(value, whole[path][name], rtol=1e-4, atol=1e-6)


def wanted_of(model: Any, *names: str) -> dict[Any, frozenset[str]]:
    return {weight: frozenset(names) for weight in anatomy_of(model).weights if weight.role in LINEAR}


def test_weights_that_read_a_neuron_which_never_fires_cost_nothing_however_large() -> None:
    model = make("t5-v1.0")
    layer = model.encoder.block[0].layer[1].DenseReluDense
    silent = 2
    with torch.no_grad():
        layer.wi.weight[silent] = 0.0
        layer.wo.weight[:, silent] = 100.0
    path = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    wanted = {weight: needs("obs") for weight in anatomy_of(model).weights if weight.path == path}
    known = gather_statistics(model, wanted, [batch_of(ONE, TWO)], loss=loss)[path]
    scores = score_weight(layer.wo.weight, "obs", path=path, statistics=known)
    fires = torch.arange(scores.shape[1]) != silent
    assert not scores[:, ~fires].any() and (scores[:, fires] > 0).any()
    with torch.no_grad():  # a layer that reads zeros alone gives nothing
        layer.wi.weight.zero_()
    known = gather_statistics(model, wanted, [batch_of(ONE, TWO)], loss=loss)[path]
    assert not score_weight(layer.wo.weight, "obs", path=path, statistics=known).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_loss_feels_of_an_output_is_its_gradient_whatever_the_batches(family: str) -> None:
    model = make(family).eval()
    wanted = wanted_of(model, *BACKWARD)
    together = gather_statistics(model, wanted, [batch_of(ONE, TWO)], loss=loss)
    apart = gather_statistics(model, wanted, [batch_of(ONE), batch_of(TWO)], loss=loss)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for weight in wanted:
        felt: list[Tensor] = []
        layer = model.get_submodule(weight.path.rpartition(".")[0])
        handle = layer.register_full_backward_hook(lambda *hooked, felt=felt: felt.append(hooked[2][0]))
        for batch in (batch_of(ONE), batch_of(TWO)):
            (loss(model, batch) * (batch["labels"] != IGNORED).sum()).backward()
        handle.remove()
        model.zero_grad()
        expected = torch.cat([each[0] for each in felt]).square().mean(0)
        if weight.role == "lm_head":  # the expectation over the model's own choices instead of the rows' targets
            with torch.no_grad():
                chances = torch.cat([logits(model, batch).softmax(-1)[0] for batch in (batch_of(ONE), batch_of(TWO))])
            expected = (chances * (1 - chances)).mean(0)
        for found in (together, apart):
            torch.testing.assert_close(found[weight.path]["output_gradient"], expected, rtol=1e-3, atol=1e-9)


def test_a_logits_bias_is_part_of_what_the_head_gives() -> None:
    model: Any = make_layer_normed("marian")
    model.final_logits_bias[0, 7] = 5.0
    wanted = {weight: frozenset(BACKWARD) for weight in anatomy_of(model).weights if weight.role == "lm_head"}
    found = gather_statistics(model, wanted, [batch_of(ONE)], loss=loss)["lm_head.weight"]["output_gradient"]
    with torch.no_grad():
        chances = logits(model.eval(), batch_of(ONE)).softmax(-1)[0]
    torch.testing.assert_close(found, (chances * (1 - chances)).mean(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str) -> None:
    model = make(family)
    wanted = wanted_of(model, *GRADIENTS, *INPUTS, *OUTPUTS, *BACKWARD)
    tight = gather_statistics(model, wanted, [batch_of(ONE, TWO)], loss=loss)
    loose = gather_statistics(model, wanted, [batch_of(ONE, TWO, pad=3)], loss=loss)
    assert tight.keys() == loose.keys() == {weight.path for weight in wanted}
    for path, statistics in tight.items():
        assert statistics.keys() == {*GRADIENTS, *INPUTS, *OUTPUTS, *BACKWARD}
        for name, value in statistics.items():
            assert torch.allclose(value, loose[path][name], rtol=1e-3, atol=1e-6), (path, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_are_averaged(family: str) -> None:
    model = make(family)
    wanted = wanted_of(model, *GRADIENTS, *INPUTS, *OUTPUTS)
    first, second = (gather_statistics(model, wanted, [batch_of(row)], loss=loss) for row in (ONE, TWO))
    both = gather_statistics(model, wanted, [batch_of(ONE), batch_of(TWO)], loss=loss)
    for weight in wanted:
        path = weight.path
        for name in GRADIENTS:
            assert torch.allclose(both[path][name], (first[path][name] + second[path][name]) / 2, atol=1e-5)
        source = weight.stack == "encoder" or (weight.role == "cross_attention" and weight.part in "kv")
        counts = torch.tensor([4.0, 2.0] if source else [3.0, 5.0])
        for name in (*INPUTS, *OUTPUTS):
            power = 2 if name == "input_norm" else 1
            means = torch.stack([first[path][name], second[path][name]]) ** power
            mean = (means * counts[:, None]).sum(0) / counts.sum()
            assert torch.allclose(both[path][name] ** power, mean, rtol=1e-4, atol=1e-6), (path, name)


def test_a_last_batch_of_one_row_counts_as_one_row() -> None:
    model = make("t5-v1.0")
    wanted = wanted_of(model, *GRADIENTS)
    many, one = batch_of(ONE, ONE, TWO, ONE), batch_of(TWO)
    parts = [gather_statistics(model, wanted, [batch], loss=loss) for batch in (many, one)]
    both = gather_statistics(model, wanted, [many, one], loss=loss)
    for weight in wanted:
        for name in GRADIENTS:
            four, single = (part[weight.path][name] for part in parts)
            assert torch.allclose(both[weight.path][name], (4 * four + single) / 5, rtol=1e-4, atol=1e-7)


def test_a_gradient_is_autograds() -> None:
    model = make("t5-v1.1")
    found = gather_statistics(model, wanted_of(model, *GRADIENTS), [batch_of(ONE, TWO)], loss=loss)
    loss(model, batch_of(ONE, TWO)).backward()
    for path, statistics in found.items():
        gradient = model.get_parameter(path).grad
        assert torch.allclose(statistics["gradient"], gradient.abs(), atol=1e-5)
        assert torch.allclose(statistics["squared_gradient"], gradient.square(), atol=1e-5)


def test_what_a_layer_reads_is_told_by_feature() -> None:
    model = make("t5-v1.0")
    wo = next(weight for weight in anatomy_of(model).weights if weight.part == "wo" and weight.stack == "encoder")
    read: list[Tensor] = []
    module = model.get_submodule(wo.path.removesuffix(".weight"))
    handle = module.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0].detach()[0]))
    loss(model, batch_of(ONE))
    handle.remove()
    found = gather_statistics(model, {wo: INPUTS}, [batch_of(ONE)], loss=loss)[wo.path]
    assert torch.allclose(found["input_norm"], read[0].square().mean(0).sqrt(), atol=1e-6)
    assert torch.allclose(found["input_mean"], read[0].abs().mean(0), atol=1e-6)
    assert torch.equal(found["input_active"], (read[0] != 0).float().mean(0))
    assert 0 < found["input_active"].mean() < 1  # a ReLU stands before it


@pytest.mark.parametrize("family", ["t5-v1.0", "bart", "bert"])
def test_what_a_layer_gives_is_told_by_channel_of_real_tokens_alone(family: str) -> None:
    """Beside relu(output) of each row by itself, where there is no padding; of a bias as of its weight."""
    model = make(family) if family in FAMILIES else make_layer_normed(family)
    measure = loss if model.config.is_encoder_decoder else class_loss
    weights = [weight for weight in anatomy_of(model).weights if weight.role in (*LINEAR, "classifier")]
    given: dict[str, list[Tensor]] = {}
    handles = [
        model.get_submodule(weight.path.rpartition(".")[0]).register_forward_hook(
            lambda module, arguments, output, path=weight.path: given.setdefault(path, []).append(
                output.detach().flatten(0, -2).relu()
            )
        )
        for weight in weights
    ]
    for row in (ONE, TWO):
        measure(model, batch_of(row))
    for handle in handles:
        handle.remove()
    found = gather_statistics(model, dict.fromkeys(weights, OUTPUTS), [batch_of(ONE, TWO)], loss=measure)
    assert len(found) == len(weights)
    assert any(path.endswith(".bias") for path in found) or family == "t5-v1.0"
    for path, statistics in found.items():
        tokens = torch.cat(given[path])
        zeros = torch.eq(tokens, torch.zeros_like(tokens)).float().mean(0)
        torch.testing.assert_close(statistics["output_active"], 1 - zeros, atol=1e-6, rtol=0)
        torch.testing.assert_close(statistics["output_mean"], tokens.mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_a_tied_heads_gradient_is_its_own(masked: bool) -> None:
    """Under a view also where the mask removes: there the product's gradient says what coming back would change."""
    model = make("t5-v1.0")
    head = anatomy_of(model)["lm_head.weight"]
    mask = torch.rand(head.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    masks = MaskSet({head.path: mask}, {head.path: "view"}, "") if masked else MaskSet.empty("")
    with attach(model, masks):
        found = gather_statistics(model, {head: {"gradient"}}, [batch_of(ONE, TWO)], loss=loss)[head.path]["gradient"]
        assert is_tied(model)
        hidden = model(**batch_of(ONE, TWO), output_hidden_states=True).decoder_hidden_states[-1].detach()
        table = model.lm_head.weight.detach().clone()
        product = (table * mask if masked else table).requires_grad_()
        logits = (hidden * model.model_dim**-0.5) @ product.T
        labels = batch_of(ONE, TWO)["labels"]
        nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED).backward()
    assert product.grad is not None
    assert torch.allclose(found, product.grad.abs(), atol=1e-6)
    assert found[~mask].any()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = make("t5-v1.0").train()
    model.shared.weight.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    head = model.lm_head.weight

    def failing(model: Any, batch: dict[str, Tensor]) -> Tensor:
        raise MaskError("no")

    wanted = wanted_of(model, *GRADIENTS, *INPUTS, *OUTPUTS)
    if fails:
        with pytest.raises(MaskError, match="no"):
            gather_statistics(model, wanted, [batch_of(ONE)], loss=failing)
    else:
        gather_statistics(model, wanted, [batch_of(ONE)], loss=loss)
    assert model.training
    assert model.lm_head.weight is head
    assert is_tied(model)
    assert not model.shared.weight.requires_grad
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), before[name])
        assert parameter.grad is None
        assert parameter.requires_grad == (name != "shared.weight")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_what_cannot_be_noted_is_refused_by_name() -> None:
    model = make("t5-v1.0")
    anatomy = anatomy_of(model)
    wo = next(weight for weight in anatomy.weights if weight.part == "wo")
    with pytest.raises(MaskError, match="at least one calibration batch"):
        gather_statistics(model, {wo: {"gradient"}}, [], loss=loss)
    with pytest.raises(MaskError, match=r"shared\.weight: .*no linear layer"):
        gather_statistics(model, {anatomy["shared.weight"]: {"input_norm"}}, [batch_of(ONE)], loss=loss)
    model.get_parameter(wo.path).data[0, 0] = float("nan")
    with pytest.raises(MaskError, match="NaN or infinity"):
        gather_statistics(model, {wo: {"gradient"}}, [batch_of(ONE)], loss=loss)
