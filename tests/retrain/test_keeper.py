from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
)
from transformers.optimization import Adafactor

from secateur.anatomy.check import anatomy_of
from secateur.errors import MaskError
from secateur.masks.group import prune_group
from secateur.masks.hold import attach, revived
from secateur.masks.mask import MaskSet
from secateur.retrain.keeper import ZERO_PRESERVING, MaskCallback, keep, preserves_zero

WI = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
Batch = dict[str, Tensor]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

KNOWN: dict[str, Make] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, amsgrad=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adafactor-torch": lambda p: torch.optim.Adafactor(p, lr=1e-2, weight_decay=0.1),
    "adafactor-hf": lambda p: Adafactor(p, lr=1e-2, relative_step=False, beta1=0.9, weight_decay=0.1),
    "adafactor-hf-relative": lambda p: Adafactor(p, scale_parameter=True, warmup_init=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, weight_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, weight_decay=0.1),
}


class Restless(torch.optim.SGD):
    """An optimizer that moves weights whose gradient is zero, as orthogonalising ones do."""

    def step(self, closure=None):  # type: ignore[override]
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(0.01)


@pytest.fixture
def model() -> PreTrainedModel:
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=4,
        d_ff=24,
        num_layers=2,
        num_heads=3,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config)


@pytest.fixture
def masks(model: PreTrainedModel) -> MaskSet:
    anatomy, found, modes = anatomy_of(model), {}, {}
    for role in ("self_attention", "feed_forward", "lm_head"):
        weights = anatomy.select(role=role)
        found |= prune_group(model, weights, already=MaskSet.empty(), sparsity=0.6)
        modes |= dict.fromkeys((weight.path for weight in weights), "view" if role == "lm_head" else "hold")
    return MaskSet(found, modes, anatomy.fingerprint())


def make_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(2, 40, (3, 7), generator=generator),
        "labels": torch.randint(2, 40, (3, 5), generator=generator),
    }


def held(masks: MaskSet) -> dict[str, Tensor]:
    return {path: mask for path, mask in masks.masks.items() if masks.modes[path] == "hold"}


def train(model: PreTrainedModel, optimizer: torch.optim.Optimizer, steps: int = 4, accumulation: int = 1) -> None:
    for step in range(steps):
        for part in range(accumulation):
            (model(**make_batch(100 * step + part)).loss / accumulation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def dead_moments(model: PreTrainedModel, optimizer: torch.optim.Optimizer, masks: MaskSet) -> list[Tensor]:
    """What the optimizer remembers of dead weights, where it remembers single weights."""
    return [
        value[~mask]
        for path, mask in held(masks).items()
        for value in optimizer.state[model.get_parameter(path)].values()
        if isinstance(value, Tensor) and value.shape == mask.shape
    ]


@pytest.mark.parametrize("name", list(KNOWN))
@pytest.mark.parametrize("accumulation", [1, 2])
def test_dead_weights_and_their_moments_stay_exactly_zero(
    model: PreTrainedModel, masks: MaskSet, name: str, accumulation: int
) -> None:
    start = {path: model.get_parameter(path).detach().clone() for path in masks.masks}
    optimizer = KNOWN[name](list(model.parameters()))
    assert preserves_zero(optimizer)
    with attach(model, masks), keep(optimizer, model, masks):
        train(model, optimizer, accumulation=accumulation)
        assert revived(model, masks) == {}
        moments = dead_moments(model, optimizer, masks)
        assert moments or "torch" in name or "relative" in name  # factored moments belong to no single weight
        assert not any(moment.any() for moment in moments)
        for path, mask in held(masks).items():
            assert (model.get_parameter(path)[mask] != start[path][mask]).any()


def test_without_the_keeper_they_would_not(model: PreTrainedModel, masks: MaskSet) -> None:
    optimizer = KNOWN["adamw"](list(model.parameters()))
    with attach(model, masks):
        train(model, optimizer, steps=1)
        assert set(revived(model, masks)) == set(held(masks))


@pytest.mark.parametrize("name", list(KNOWN))
def test_moments_from_dense_training_are_forgotten(model: PreTrainedModel, masks: MaskSet, name: str) -> None:
    optimizer = KNOWN[name](list(model.parameters()))
    train(model, optimizer, steps=2)
    with attach(model, masks), keep(optimizer, model, masks):
        assert not any(moment.any() for moment in dead_moments(model, optimizer, masks))
        train(model, optimizer, steps=2)
        assert revived(model, masks) == {}


def test_a_loaded_state_is_cleaned_too(model: PreTrainedModel, masks: MaskSet) -> None:
    optimizer = KNOWN["adamw"](list(model.parameters()))
    train(model, optimizer, steps=1)
    state = copy.deepcopy(optimizer.state_dict())
    with attach(model, masks), keep(optimizer, model, masks):
        optimizer.load_state_dict(state)
        assert not any(moment.any() for moment in dead_moments(model, optimizer, masks))


def test_the_trained_weights_are_those_of_masking_by_hand_before_clipping(
    model: PreTrainedModel, masks: MaskSet
) -> None:
    twin = copy.deepcopy(model)
    optimizer, other = (torch.optim.AdamW(net.parameters(), lr=1e-2) for net in (model, twin))
    attach(model, masks), attach(twin, masks)
    norms = []
    with keep(optimizer, model, masks):
        for step in range(3):
            for net, by_hand, steps in ((model, False, optimizer), (twin, True, other)):
                net(**make_batch(step)).loss.backward()
                for path, mask in held(masks).items() if by_hand else ():
                    net.get_parameter(path).grad.mul_(mask)
                norms.append(nn.utils.clip_grad_norm_(net.parameters(), 0.1).item())
                steps.step()
                steps.zero_grad()
    assert norms[0::2] == norms[1::2]
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))


def test_clipping_does_not_see_dead_gradients(model: PreTrainedModel, masks: MaskSet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, masks)
    model(**make_batch(0)).loss.backward()
    dense = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    whole = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    optimizer.zero_grad()
    with keep(optimizer, model, masks):
        model(**make_batch(0)).loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
    kept = [grad * held(masks).get(name, torch.ones(())) for name, grad in dense.items()]
    assert norm.item() == pytest.approx(
        torch.linalg.vector_norm(torch.cat([k.flatten() for k in kept])).item(), rel=1e-6
    )
    assert norm < whole


def test_nan_and_infinity_of_dead_gradients_are_dropped(model: PreTrainedModel, masks: MaskSet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, masks)
    weight, mask = model.get_parameter(WI), masks.masks[WI]
    bad = torch.where(mask, 1.0, torch.tensor(float("nan")))
    with keep(optimizer, model, masks):
        (weight * bad).sum().backward()
        assert torch.equal(weight.grad, mask.float())


def test_a_gradient_that_is_there_already_is_masked(model: PreTrainedModel, masks: MaskSet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, masks)
    model(**make_batch(0)).loss.backward()
    with keep(optimizer, model, masks):
        optimizer.step()
        assert revived(model, masks) == {}


@pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_other_types_and_strides_are_masked(dtype: torch.dtype, transposed: bool) -> None:
    mask = torch.rand(5, 7) > 0.5
    net = nn.Linear(7, 5, bias=False, dtype=dtype)
    masks = MaskSet({"weight": mask}, {"weight": "hold"}, "")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with attach(net, masks), keep(optimizer, net, masks):
        if transposed:
            net.weight.grad = torch.zeros(7, 5, dtype=dtype).t()
        net(torch.ones(2, 7, dtype=dtype)).sum().backward()
        assert torch.equal(net.weight.grad != 0, mask)
        optimizer.step()
        assert revived(net, masks) == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Restless(p, lr=0.1),
        lambda p: torch.optim.Muon([x for x in p if x.dim() == 2], lr=0.02),
        lambda p: torch.optim.ASGD(p, lr=0.1),
        lambda p: torch.optim.Adamax(p, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1, eps=0.0),
    ],
    ids=["restless", "muon", "asgd", "adamax", "adam-eps-0"],
)
def test_any_other_optimizer_has_its_steps_cleaned(model: PreTrainedModel, masks: MaskSet, make: Make) -> None:
    optimizer = make(list(model.parameters()))
    assert not preserves_zero(optimizer)
    with attach(model, masks), keep(optimizer, model, masks):
        train(model, optimizer, steps=2)
        assert revived(model, masks) == {}
        assert not any(moment.any() for moment in dead_moments(model, optimizer, masks))


def test_every_optimizer_on_the_list_is_tested() -> None:
    tested = {type(make([nn.Parameter(torch.zeros(2, 2))])) for make in KNOWN.values()}
    assert tested == ZERO_PRESERVING


def test_removed_head_entries_move_under_a_view(model: PreTrainedModel, masks: MaskSet) -> None:
    before, mask = model.shared.weight.detach().clone(), masks.masks["lm_head.weight"]
    optimizer = KNOWN["adamw"](list(model.parameters()))
    with attach(model, masks), keep(optimizer, model, masks):
        train(model, optimizer)
    assert (model.shared.weight.detach() != before)[~mask].all()


def test_frozen_weights_may_be_masked(model: PreTrainedModel, masks: MaskSet) -> None:
    model.get_parameter(WI).requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with attach(model, masks), keep(optimizer, model, masks):
        train(model, optimizer, steps=1)
        assert revived(model, masks) == {}


def test_removing_the_keeper_removes_every_hook(model: PreTrainedModel, masks: MaskSet) -> None:
    optimizer = Restless(list(model.parameters()), lr=0.1)
    attach(model, masks)
    keeper = keep(optimizer, model, masks)
    keeper.remove()
    keeper.remove()
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


def test_masks_that_were_not_attached_are_refused_with_the_number(model: PreTrainedModel, masks: MaskSet) -> None:
    num_held = sum(int((~mask).sum()) for mask in held(masks).values())
    with pytest.raises(
        MaskError, match=f"^{num_held + masks.removed('lm_head.weight')} removed .*attach the masks first"
    ):
        keep(torch.optim.SGD(model.parameters(), lr=0.1), model, masks)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing.weight", "no such parameter"), ("shared.weight", r"shape \(3,\), the weight \(40, 16\)")],
)
def test_masks_of_another_model_are_refused(model: PreTrainedModel, path: str, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        keep(torch.optim.SGD(model.parameters(), lr=0.1), model, MaskSet({path: torch.ones(3) > 0}, {path: "hold"}, ""))


def test_a_sparse_gradient_is_refused_by_name() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    masks = MaskSet({"weight": torch.rand(4, 2) > 0.5}, {"weight": "hold"}, "")
    attach(table, masks)
    keep(torch.optim.SGD(table.parameters(), lr=0.1), table, masks)
    with pytest.raises(MaskError, match="weight: its gradient is sparse"):
        table(torch.tensor([1])).sum().backward()


def test_it_works_through_accelerate(model: PreTrainedModel, masks: MaskSet) -> None:
    accelerator = Accelerator(cpu=True)
    attach(model, masks)
    wrapped, optimizer = accelerator.prepare(model, Restless(list(model.parameters()), lr=0.1))
    with keep(optimizer, wrapped, masks):
        accelerator.backward(wrapped(**make_batch(0)).loss)
        accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        assert revived(wrapped, masks) == {}


def run_trainer(model: PreTrainedModel, folder: Path, callbacks: list[TrainerCallback], **options) -> Seq2SeqTrainer:
    rows = [{key: value[0] for key, value in make_batch(seed).items()} for seed in range(8)]
    arguments = Seq2SeqTrainingArguments(
        str(folder),
        max_steps=3,
        save_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=rows, callbacks=callbacks)  # type: ignore[arg-type]
    trainer.train()
    return trainer


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor", "sgd"])
def test_the_callback_keeps_the_zeros_in_a_users_trainer(
    model: PreTrainedModel, masks: MaskSet, tmp_path: Path, optim: str
) -> None:
    with attach(model, masks) as attachment:
        trainer = run_trainer(model, tmp_path, [MaskCallback(masks)], optim=optim)
        assert trainer.state.global_step == 3
        assert attachment.trained
        assert revived(model, masks) == {}
        inner = trainer.optimizer.optimizer  # type: ignore[union-attr]
        assert not any(moment.any() for moment in dead_moments(model, inner, masks))
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_the_callback_refuses_a_checkpoint_with_revived_zeros(
    model: PreTrainedModel, masks: MaskSet, tmp_path: Path
) -> None:
    class Vandal(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            model.get_parameter(WI).data.add_(1.0)

    attach(model, masks)
    with pytest.raises(MaskError, match=rf"in the checkpoint of step 2.*{WI}"):
        run_trainer(model, tmp_path, [MaskCallback(masks), Vandal()])


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD], ids=["adamw", "sgd"])
def test_what_rests_loses_its_momentum_and_keeps_the_size_of_its_gradients(
    make: Callable[..., torch.optim.Optimizer],
) -> None:
    """Without the latter Adam's first steps with what comes back would be several times too long."""
    linear = nn.Linear(3, 2, bias=False)
    whole = nn.Sequential(linear)
    optimizer = make(linear.parameters(), lr=0.1, **({"momentum": 0.9} if make is torch.optim.SGD else {}))
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    mask = torch.tensor([[True, False, True], [False, True, True]])
    before, state = linear.weight.detach().clone(), optimizer.state[linear.weight]
    sizes = state["exp_avg_sq"].clone() if "exp_avg_sq" in state else None
    momentum = "momentum_buffer" if sizes is None else "exp_avg"
    masks = MaskSet({"0.weight": mask}, {"0.weight": "view"}, "")
    with attach(whole, masks), keep(optimizer, whole, masks, still=["0.weight"]):
        assert not state[momentum][~mask].any() and state[momentum][mask].all()
        assert sizes is None or torch.equal(state["exp_avg_sq"], sizes)
        optimizer.zero_grad()
        whole(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(linear.weight[~mask], before[~mask]) and (linear.weight[mask] != before[mask]).all()
