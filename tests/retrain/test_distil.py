"""Distillation: the loss is what it says, padding counts nowhere, and nothing of it is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration

from secateur.errors import RunInterrupted, SecateurError
from secateur.masks.mask import MaskSet
from secateur.recipe.names import LayerMap, Projection, words
from secateur.retrain.distil import MAPS, PROJECTION, Distiller, Parts
from secateur.retrain.trainer import TrainResult, train
from secateur.tasks.encode import Collator, EncodedPairs
from secateur.tasks.sampler import LengthSampler

ROWS = EncodedPairs(
    [[5, 9, 3, 7], [4, 6], [11, 2, 8], [3, 3, 12, 13, 4], [9], [7, 10, 2], [6, 5, 4, 3], [2, 14]],
    [[7, 8], [6, 2, 11, 12], [3], [5, 9, 4], [10, 2, 6, 1, 8], [13], [4, 7], [12, 11, 3]],
)
SIZES: dict[str, Any] = {"vocab_size": 16, "d_kv": 4, "d_ff": 12, "num_heads": 2, "decoder_start_token_id": 0}


def make(seed: int, width: int = 8, layers: int = 2, decoder_layers: int = 2) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = T5Config(**SIZES, d_model=width, num_layers=layers, num_decoder_layers=decoder_layers)
        return T5ForConditionalGeneration(config).eval()


def batch_of(indexes: list[int], pad: int = 0) -> dict[str, Tensor]:
    batch = Collator(0)([ROWS[index] for index in indexes])
    extra = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {name: functional.pad(tensor, (0, pad), value=extra[name]) for name, tensor in batch.items()}


def loss_of(distiller: Distiller, student: Any, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    read["decoder_input_ids"] = student.prepare_decoder_input_ids_from_labels(batch["labels"])
    outputs = student(**read, use_cache=False, output_hidden_states=distiller.needs_hidden)
    return distiller.loss(student, outputs, read, batch["labels"], smoothing)


ALL = Parts(labels=0.5, logits=0.7, hidden=0.3, temperature=3.0)


@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize("parts", [ALL, Parts(), Parts(labels=0.0, logits=0.0, hidden=1.0)])
def test_padding_changes_nothing(parts: Parts, width: int) -> None:
    student, distiller = make(1, layers=1, decoder_layers=1), Distiller(make(2, width), parts)
    with distiller.teaching(student, device="cpu", seed=3):
        tight = loss_of(distiller, student, batch_of([0, 3]), 0.1)
        loose = loss_of(distiller, student, batch_of([0, 3], pad=4), 0.1)
    torch.testing.assert_close(tight, loose)


@pytest.mark.parametrize("map", MAPS)
def test_the_loss_is_the_sum_of_what_its_rows_give(map: Any) -> None:
    student = make(1, layers=2, decoder_layers=3)
    distiller = Distiller(make(2, layers=4), Parts(labels=0.5, logits=0.7, hidden=2.0, map=map))
    together = loss_of(distiller, student, batch_of([0, 1, 2, 3]))
    apart = sum(loss_of(distiller, student, batch_of([index])) for index in range(4))
    torch.testing.assert_close(together, torch.as_tensor(apart))


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    student = make(1)
    twin = Distiller(make(1), ALL)
    with torch.no_grad():
        batch = batch_of([0, 1, 2])
        mine = loss_of(twin, student, batch)
        kept = batch["labels"] != -100
        logits = student(**batch).logits[kept]
        torch.testing.assert_close(mine, 0.5 * functional.cross_entropy(logits, batch["labels"][kept], reduction="sum"))


def test_the_divergence_is_that_of_the_distributions_at_the_temperature() -> None:
    student, teacher = make(1), make(2)
    batch = batch_of([0, 1])
    with torch.no_grad():
        found = loss_of(Distiller(teacher, Parts(labels=0.0, logits=1.0, temperature=3.0)), student, batch)
        kept = batch["labels"] != -100
        mine, theirs = (model(**batch).logits[kept].div(3.0).softmax(1) for model in (student, teacher))
        torch.testing.assert_close(found, 9.0 * (theirs * (theirs / mine).log()).sum(), rtol=1e-4, atol=1e-5)


def test_a_wider_table_of_the_teacher_is_padding() -> None:
    student, teacher = make(1), make(2)
    batch = batch_of([0, 1])
    before = loss_of(Distiller(teacher, Parts()), student, batch)
    teacher.resize_token_embeddings(20)
    torch.testing.assert_close(loss_of(Distiller(teacher, Parts()), student, batch), before)


@pytest.mark.parametrize("width", [8, 12])
def test_a_layer_learns_from_the_nearest_layer_of_its_stack(width: int) -> None:
    student, teacher = make(1, layers=2, decoder_layers=3), make(2, width, layers=4, decoder_layers=2)
    batch = batch_of([0, 1, 3])
    losses = {}
    for name in MAPS:
        distiller = Distiller(teacher, Parts(labels=0.0, logits=0.0, hidden=1.0, map=name))  # pyright: ignore
        with distiller.teaching(student, device="cpu", seed=3), torch.no_grad():
            losses[name] = loss_of(distiller, student, batch)
            mine, theirs = (model(**batch, output_hidden_states=True) for model in (student, teacher))
            project = (
                getattr(student, PROJECTION) if width == 12 else dict.fromkeys(("encoder", "decoder"), nn.Identity())
            )
    expected = torch.zeros(())
    kept = batch["labels"] != -100
    for row in range(3):
        least = []
        for stack, tokens in (("encoder", batch["attention_mask"].bool()), ("decoder", kept)):
            states, targets = (getattr(found, f"{stack}_hidden_states")[1:] for found in (mine, theirs))
            for state in states:
                apart = [project[stack](state[row][tokens[row]]) - target[row][tokens[row]] for target in targets]
                sizes = [target[row][tokens[row]].square().sum() for target in targets]
                least.append(min(gap.square().sum() / size for gap, size in zip(apart, sizes, strict=True)))
        expected += torch.stack(least).mean() * kept[row].sum()
    torch.testing.assert_close(losses["nearest"], expected)
    assert losses["nearest"] < losses["height"]
    assert set(MAPS) == set(words(LayerMap))


def test_layers_that_are_not_chosen_keep_no_graph() -> None:
    kept = {}
    for name in MAPS:
        student, teacher = make(1, layers=3, decoder_layers=3), make(2, layers=3, decoder_layers=3)
        distiller = Distiller(teacher, Parts(labels=0.0, logits=0.0, hidden=1.0, map=name))  # pyright: ignore
        saved: list[tuple[int, ...]] = []

        def note(tensor: Tensor, saved: list[tuple[int, ...]] = saved) -> Tensor:
            saved.append(tuple(tensor.shape))
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with distiller.teaching(student, device="cpu", seed=3), hooks:
            loss_of(distiller, student, batch_of([0, 1, 3])).backward()
        kept[name] = len(saved)
    assert kept["nearest"] == kept["height"]


LISTS: dict[Any, Any] = {"encoder": ((1, 4), (3,)), "decoder": ((2,), (1, 2), (1,))}


def test_a_layer_learns_from_the_nearest_of_those_that_a_map_lists() -> None:
    student, teacher = make(1, layers=2, decoder_layers=3), make(2, layers=4, decoder_layers=2)
    batch = batch_of([0, 1, 3])
    distiller = Distiller(teacher, Parts(labels=0.0, logits=0.0, hidden=1.0, map=LISTS))
    with distiller.teaching(student, device="cpu", seed=3), torch.no_grad():
        found = loss_of(distiller, student, batch)
        mine, theirs = (model(**batch, output_hidden_states=True) for model in (student, teacher))
    kept, expected = batch["labels"] != -100, torch.zeros(())
    for row in range(3):
        least = []
        for stack, tokens in (("encoder", batch["attention_mask"].bool()[row]), ("decoder", kept[row])):
            states, targets = (getattr(model, f"{stack}_hidden_states") for model in (mine, theirs))
            for layer, choices in enumerate(LISTS[stack], start=1):
                state, others = states[layer][row][tokens], [targets[other][row][tokens] for other in choices]
                least.append(min((state - other).square().sum() / other.square().sum() for other in others))
        expected += torch.stack(least).mean() * kept[row].sum()
    torch.testing.assert_close(found, expected)


def test_lists_of_all_layers_are_the_nearest_map_and_lists_by_height_are_height() -> None:
    student, teacher = make(1, layers=2, decoder_layers=2), make(2, layers=4, decoder_layers=3)
    batch = batch_of([0, 2])

    def found(map: Any) -> Tensor:
        return loss_of(Distiller(teacher, Parts(labels=0.0, logits=0.0, hidden=1.0, map=map)), student, batch)

    for name, pairs in MAPS.items():
        torch.testing.assert_close(found(name), found({"encoder": pairs(2, 4), "decoder": pairs(2, 3)}))


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        (
            {"encoder": [[1]], "decoder": [[1], [1]]},
            r"map\.encoder: the student's encoder has 2 layers at this",
        ),
        (
            {"encoder": [[1], [5]], "decoder": [[1], [1]]},
            r"map\.encoder\.1: the teacher's encoder has 4 layers",
        ),
        ({"encoder": [[1], [1]], "decoder": None}, r"map\.decoder: is missing"),
    ],
)
def test_a_map_that_does_not_fit_is_told_before_the_training(tmp_path: Path, lists: Any, told: str) -> None:
    student, distiller = make(1), Distiller(make(2, layers=4), Parts(hidden=1.0, map=lists))
    with pytest.raises(SecateurError, match=told):
        fit(tmp_path, student, distiller)
    assert not any(tmp_path.iterdir())


def test_a_projection_is_learned_where_it_is_needed_or_always(tmp_path: Path) -> None:
    for width, projection, there in ((8, "needed", False), (8, "always", True), (12, "needed", True)):
        student = make(1)
        parts = Parts(labels=0.0, logits=0.0, hidden=1.0, projection=projection)  # pyright: ignore
        with Distiller(make(2, width), parts).teaching(student, device="cpu", seed=3):
            assert hasattr(student, PROJECTION) is there
    assert set(words(Projection)) == {"needed", "always"}
    losses = fit(tmp_path, make(1), Distiller(make(2), Parts(labels=0.0, logits=0.0, hidden=1.0, projection="always")))
    assert losses.steps


def fit(work: Path, student: Any, distiller: Distiller | None, **changes: Any) -> TrainResult:
    settings: dict[str, Any] = {
        "epochs": 3.0, "learning_rate": 0.05, "batch_size": 4, "precision": "fp32", "optimizer": "adamw",
        "momentum": None, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 0, "accumulation": 1,
        "max_grad_norm": 1.0, "label_smoothing": 0.0, "dropout": 0.1, "attention": "eager", "save_every": 2, "seed": 5,
    }  # fmt: skip
    settings |= changes
    masks = settings.pop("masks", MaskSet.empty())
    sampler = LengthSampler(ROWS.length_keys, settings["batch_size"], seed=1, by_length=True)
    return train(
        student, ROWS, collate=Collator(0), sampler=sampler, masks=masks, work=work, distiller=distiller, **settings
    )


def test_a_student_comes_nearer_to_its_teacher_and_both_are_left_alone(tmp_path: Path) -> None:
    student, teacher = make(1, layers=1, decoder_layers=1), make(2, width=12)
    teacher.shared.weight.requires_grad_(False)
    names = set(dict(student.named_parameters()))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distiller = Distiller(teacher, Parts(labels=0.0, logits=1.0, hidden=1.0))
    batch = batch_of(list(range(8)))
    plain = Distiller(teacher, Parts(labels=0.0))
    far = loss_of(plain, student, batch).item()
    fit(tmp_path, student, distiller, epochs=20.0, dropout=0.0, learning_rate=0.02)
    assert loss_of(plain, student, batch).item() < 0.7 * far
    assert set(dict(student.named_parameters())) == names and not hasattr(student, PROJECTION)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not teacher.training and not teacher.shared.weight.requires_grad
    assert teacher.get_parameter("encoder.final_layer_norm.weight").requires_grad


@pytest.mark.parametrize("width", [8, 12])
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, width: int) -> None:
    whole, broken = make(1), make(1)
    fit(tmp_path / "whole", whole, Distiller(make(2, width), ALL))
    seen: list[Any] = []
    with pytest.raises(RunInterrupted):
        fit(
            tmp_path / "broken", broken, Distiller(make(2, width), ALL), on_progress=seen.append,
            should_stop=lambda: len(seen) == 3,
        )  # fmt: skip
    again = make(1)
    fit(tmp_path / "broken", again, Distiller(make(2, width), ALL))
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))


def test_accumulation_changes_memory_and_nothing_else(tmp_path: Path) -> None:
    one, two = make(1), make(1)
    parts = Parts(labels=0.5, logits=0.7)
    options: dict[str, Any] = {"optimizer": "sgd", "dropout": 0.0, "epochs": 1.0, "max_grad_norm": 1e9}
    fit(tmp_path / "one", one, Distiller(make(2), parts), batch_size=8, **options)
    fit(tmp_path / "two", two, Distiller(make(2), parts), batch_size=4, accumulation=2, **options)
    for mine, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_zeros_stay(tmp_path: Path) -> None:
    student = make(1)
    path = "decoder.block.0.layer.0.SelfAttention.q.weight"
    mask = torch.rand(student.get_parameter(path).shape) < 0.5
    student.get_parameter(path).data *= mask
    masks = MaskSet({path: mask}, {path: "hold"}, "")
    fit(tmp_path, student, Distiller(make(2), ALL), masks=masks)
    assert not (student.get_parameter(path)[~mask] != 0).any()


def test_a_teacher_that_is_not_asked_is_refused() -> None:
    with pytest.raises(SecateurError, match="neither logits nor hidden"):
        Distiller(make(2), Parts(logits=0.0))
