"""Training: a step's loss is a mean over its target tokens, zeros stay, faults stop it, and nothing is left behind."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration, TrainerCallback

from secateur.anatomy.check import anatomy_of
from secateur.errors import CheckpointError, RunInterrupted, SecateurError
from secateur.masks.hold import attach
from secateur.masks.mask import MaskSet
from secateur.retrain import memory, trainer
from secateur.retrain.dropout import ByteDropout
from secateur.retrain.optimizers import OPTIMIZERS
from secateur.retrain.trainer import Progress, newest_checkpoint, train
from secateur.tasks.encode import Collator, EncodedPairs
from secateur.tasks.sampler import LengthSampler

HEAD = "lm_head.weight"


def make_model() -> Any:
    sizes = {"d_model": 16, "d_kv": 4, "num_heads": 3, "d_ff": 20, "num_layers": 1, "decoder_start_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return T5ForConditionalGeneration(T5Config(vocab_size=30, **sizes))


def make_rows(number: int = 12) -> EncodedPairs:
    """Targets of very different lengths: a mean of means would not be the mean."""
    generator = torch.Generator().manual_seed(1)
    sources = [torch.randint(2, 30, (4 + row % 3,), generator=generator).tolist() for row in range(number)]
    targets = [torch.randint(2, 30, (1 + 3 * (row % 4),), generator=generator).tolist() for row in range(number)]
    return EncodedPairs(sources, targets)


class InOrder(torch.utils.data.Sampler[int]):
    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Any:
        return iter(range(12))


SETTINGS: dict[str, Any] = {
    "epochs": 1.0,
    "learning_rate": 1e-2,
    "batch_size": 4,
    "precision": "fp32",
    "optimizer": "sgd",
    "momentum": None,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "accumulation": 1,
    "max_grad_norm": 1e9,
    "label_smoothing": 0.0,
    "dropout": 0.0,
    "attention": "eager",
    "save_every": 100,
    "seed": 1,
}


def run(work: Path, model: Any, masks: MaskSet | None = None, **changes: Any) -> trainer.TrainResult:
    rows = changes.pop("rows", make_rows())
    settings = SETTINGS | changes
    settings.setdefault("sampler", InOrder())
    return train(model, rows, collate=Collator(0), masks=masks or MaskSet.empty(), work=work, **settings)


def head_and_attention_masks(model: Any) -> MaskSet:
    generator = torch.Generator().manual_seed(2)
    anatomy = anatomy_of(model)
    paths = [weight.path for weight in anatomy.select(role="self_attention")]
    masks = {path: torch.rand(anatomy[path].shape, generator=generator) > 0.5 for path in [*paths, HEAD]}
    return MaskSet(masks, dict.fromkeys(paths, "hold") | {HEAD: "view"}, anatomy.fingerprint())


def test_accumulation_changes_memory_and_nothing_else(tmp_path: Path) -> None:
    """SGD without momentum at a constant rate: the difference of the weights is the sum of the gradients."""
    weights = {}
    for batch_size, accumulation in ((6, 1), (3, 2), (2, 3)):
        model = make_model()
        result = run(tmp_path / f"{batch_size}", model, batch_size=batch_size, accumulation=accumulation)
        assert result.steps == 2
        weights[batch_size] = (model.state_dict(), result.first_loss)
    start = make_model().state_dict()
    whole, loss = weights[6]
    for some, other_loss in (weights[3], weights[2]):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, parameter in whole.items():
            moved = float((parameter - start[name]).abs().max())
            # Sums of a few hundred fp32 products in another order.
            assert float((some[name] - parameter).abs().max()) <= 1e-4 * moved + 1e-7, name


def test_the_loss_is_the_mean_over_the_target_tokens_of_a_step(tmp_path: Path) -> None:
    rows, model = make_rows(), make_model().eval()
    batch = Collator(0)([rows[index] for index in range(4)])
    with torch.no_grad():
        expected = model(**batch).loss
    result = run(tmp_path, make_model(), batch_size=2, accumulation=2)
    assert result.first_loss == pytest.approx(float(expected), rel=1e-5)
    assert result.losses[0] == (1, result.first_loss) and result.steps == 3 and result.epochs == 1.0


@pytest.mark.parametrize("fast", [True, False])
def test_auto_computes_in_what_the_device_is_fast_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr("secateur.tasks.precision.computes_bf16", lambda device: fast)
    model, seen = make_model(), []
    model.encoder.block[0].layer[0].SelfAttention.q.register_forward_hook(lambda *hooked: seen.append(hooked[2].dtype))
    result = run(tmp_path, model, precision="auto")
    assert result.precision == ("bf16" if fast else "fp32")
    assert {*seen} == {torch.bfloat16 if fast else torch.float32}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zeros_stay_and_the_model_is_left_as_it_was(tmp_path: Path, optimizer: str, precision: str) -> None:
    model = make_model()
    masks, forward = head_and_attention_masks(model), model.forward
    state: dict[str, Any] = {}

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, *rest: Any, **kwargs: Any) -> None:
            assert any(isinstance(module, ByteDropout) for module in kwargs["model"].modules())
            inner = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
            state.update({"of": inner.state, "named": dict(kwargs["model"].named_parameters())})

    with attach(model, masks):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        result = run(
            tmp_path, model, masks, optimizer=optimizer, precision=precision, weight_decay=0.1, dropout=0.2,
            momentum=0.9 if optimizer == "sgd" else None, accumulation=2, batch_size=2, max_grad_norm=1.0, epochs=2,
            attention="sdpa", callbacks=[Look()],
        )  # fmt: skip
        assert result.steps == 6 and result.first_loss is not None and result.first_loss > 0
        for path, mode in masks.modes.items():
            dead = ~masks.masks[path]
            if mode == "hold":
                parameter = model.get_parameter(path)
                assert parameter.dtype == torch.float32 and not parameter.detach()[dead].any()
                moments = [v for v in state["of"][parameter].values() if torch.is_tensor(v) and v.shape == dead.shape]
                assert all(not moment[dead].any() for moment in moments)
        # Under the view, the table's entries that the head lost go on moving as the embedding asks.
        table = model.shared.weight.detach()
        assert bool((table != before["shared.weight"])[~masks.masks[HEAD]].any())
        assert model.lm_head.weight is model.shared.weight
    assert "forward" not in vars(model) and model.forward == forward
    assert all(parameter.grad is None and not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert {type(module) for module in model.modules() if isinstance(module, nn.Dropout)} == {nn.Dropout}
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}


def test_the_views_gradient_is_the_embeddings_and_the_masked_heads(tmp_path: Path) -> None:
    """grad(shared) = embedding gradient + mask x head gradient, against a model with two tables."""
    model, apart = make_model(), make_model()
    masks = head_and_attention_masks(model)
    view = MaskSet({HEAD: masks.masks[HEAD]}, {HEAD: "view"}, "")
    rows = make_rows()
    batch = Collator(0)([rows[index] for index in range(6)])
    with attach(model, view):
        model.eval()(**batch).loss.backward()
    apart.lm_head.weight = nn.Parameter(apart.shared.weight.detach() * view.masks[HEAD])
    apart.eval()(**batch).loss.backward()
    expected = apart.shared.weight.grad + view.masks[HEAD] * apart.lm_head.weight.grad
    assert torch.allclose(model.shared.weight.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_configuration_is_as_it_was(tmp_path: Path, use_cache: bool) -> None:
    """The trainer would write use_cache: false into it, and whoever loads the model would generate slowly."""
    model = make_model()
    model.config.use_cache = use_cache
    run(tmp_path, model, epochs=1)
    assert model.config.use_cache is use_cache


@pytest.mark.parametrize("step", [1, 4])
def test_a_loss_that_is_not_finite_stops(tmp_path: Path, step: int) -> None:
    """Step 4 lies between two lines of the log; the weights tell what no line told."""

    class Ruin(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                with torch.no_grad():
                    kwargs["model"].get_parameter("shared.weight").fill_(float("nan"))

    with pytest.raises(SecateurError, match=r"nan|NaN") as caught:
        run(tmp_path, make_model(), batch_size=2, callbacks=[Ruin()])
    assert "learning rate" in str(caught.value) or "learning_rate" in str(caught.value)


def test_a_ruined_model_does_not_replace_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Ruin(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    kwargs["model"].get_parameter("shared.weight")[0, 0] = float("inf")

    with pytest.raises(SecateurError, match=r"at step 6\. The last good save is kept"):
        run(tmp_path, make_model(), batch_size=2, save_every=2, callbacks=[Ruin()], rows=make_rows(), epochs=2.0)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_progress_is_told_and_stopping_saves(tmp_path: Path) -> None:
    told: list[Progress] = []
    with pytest.raises(RunInterrupted, match="Stopped at step 2 of 6"):
        run(tmp_path, make_model(), batch_size=2, on_progress=told.append, should_stop=lambda: len(told) == 2)
    assert [(progress.step, progress.num_steps) for progress in told] == [(1, 6), (2, 6)]
    assert told[1].loss is not None
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == "checkpoint-2"
    model = make_model()
    resumed = run(tmp_path, model, batch_size=2)
    assert resumed.steps == 6
    assert resumed.earlier_seconds >= told[1].seconds > 0  # the time before the stop is not forgotten
    whole = make_model()
    assert run(tmp_path / "whole", whole, batch_size=2).earlier_seconds == 0
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """It knows nothing of the time spent, and the save after it must not stumble over that."""
    steps: list[Progress] = []
    with pytest.raises(RunInterrupted):
        run(tmp_path, make_model(), batch_size=2, on_progress=steps.append, should_stop=lambda: len(steps) == 2)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["stateful_callbacks"]["_Watch"]
    file.write_text(json.dumps(state))
    trainer._mark_complete(checkpoint)
    resumed = run(tmp_path, make_model(), batch_size=2, save_every=1)
    assert (resumed.steps, resumed.earlier_seconds) == (6, 0.0)


def test_stopping_at_the_last_step_is_no_interruption(tmp_path: Path) -> None:
    seen: list[Progress] = []
    assert run(tmp_path, make_model(), on_progress=seen.append, should_stop=lambda: len(seen) == 3).steps == 3


def test_a_training_that_was_over_when_it_was_killed_trains_no_step_more(tmp_path: Path) -> None:
    model, again = make_model(), make_model()
    done = run(tmp_path / "work", model, epochs=0.6)
    found = run(tmp_path / "work", again, epochs=0.6)  # from its last checkpoint, in the midst of an epoch
    assert found.steps == done.steps == 2
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_only_the_newest_whole_checkpoint_stays(tmp_path: Path) -> None:
    def checkpoint(step: int, complete: str | None) -> Path:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"1234")
        if complete is not None:
            (folder / trainer.COMPLETE).write_text(complete)
        return folder

    assert newest_checkpoint(tmp_path / "missing") is None
    of = {data: hashlib.sha256(data).hexdigest() for data in (b"1234", b"1235", b"12345")}
    whole = json.dumps({"model.safetensors": of[b"1234"]})
    checkpoint(2, whole)
    nine = checkpoint(9, whole)
    checkpoint(10, None)
    checkpoint(11, json.dumps({"model.safetensors": of[b"12345"]}))
    checkpoint(12, json.dumps({"model.safetensors": of[b"1234"], "optimizer.pt": of[b"1234"]}))
    checkpoint(13, json.dumps({"model.safetensors": of[b"1235"]}))  # as long, with a bit turned over
    assert newest_checkpoint(tmp_path) == nine
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-9"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="the training cannot be saved"):
        run(tmp_path, make_model())
    assert newest_checkpoint(tmp_path) is None


def test_label_smoothing_warmup_and_clipping_act(tmp_path: Path) -> None:
    ends = {}
    for number, changes in enumerate(
        ({}, {"label_smoothing": 0.1}, {"warmup_steps": 3}, {"max_grad_norm": 0.01}, {"schedule": "cosine"},
         {"schedule": "linear"}, {"weight_decay": 0.5}, {"dropout": 0.5}, {"optimizer": "adamw"})
    ):  # fmt: skip
        model = make_model()
        run(tmp_path / str(number), model, **changes)
        ends[number] = model.shared.weight.detach().clone()
    assert len({tensor.numpy().tobytes() for tensor in ends.values()}) == len(ends)


def test_a_training_on_a_processor_gives_its_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(True))
    run(tmp_path, make_model())
    assert calls == [True]


def test_one_process_trains_on_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two cards transformers' trainer would make torch's DataParallel."""
    assert trainer._arguments(tmp_path, use_cpu=True).n_gpu == 0
    monkeypatch.setattr(Seq2SeqTrainingArguments, "n_gpu", property(lambda arguments: 2))
    assert trainer._arguments(tmp_path, use_cpu=True)._n_gpu == 1


def test_the_order_is_the_samplers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, seen = make_rows(), []
    original = trainer._Trainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(
            row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        )
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer._Trainer, "compute_loss", compute_loss)
    sampler = LengthSampler(rows.length_keys, 4, seed=3)
    run(tmp_path, make_model(), rows=rows, sampler=sampler, epochs=2.0)
    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += [rows[index]["input_ids"] for index in sampler]
    assert seen == expected and seen[:12] != seen[12:]
