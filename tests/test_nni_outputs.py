"""NNI's activation ranks in a run: the rows that a ReLU behind the layer leaves least of go, padding counts nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import secateur
from classes import Classes
from secateur.artifacts.loading import load_model, load_tokenizer
from secateur.errors import MaskError, RecipeError
from secateur.masks.mask import MaskSet
from secateur.recipe.load import dump_recipe, parse_recipe
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_card")

RANKS = ("activation_apoz_rank", "activation_mean_rank")
STAGE = """
  - name: prune
    prune:
      nni_config_list: LISTED
      nni_pruner: {name: RANK, activation: relu}
      calibration: {rows: 64, batch_size: 3}
"""
T5_ENTRIES = """
        - {op_names_re: [".*SelfAttention.[qkvo]$", ".*EncDecAttention.[qk]$"], sparse_ratio: 0.5}
        - {op_names_re: [".*DenseReluDense.w.*"], sparse_ratio: 0.4}
        - {op_names: [lm_head], sparse_ratio: 0.3}"""
BERT_ENTRIES = """
        - {op_names_re: [".*intermediate.*", ".*attention.*", ".*pooler.*"], op_types: [Linear], sparse_ratio: 0.5}
"""


def told(model: Any, rows: list[dict[str, Tensor]], rank: str) -> dict[str, Tensor]:
    """Rank channels by hand: one row at a time, so that there is no padding, and relu of what each layer gives."""
    given: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda module, arguments, output, name=name: given.setdefault(name, []).append(
                    torch.relu(output.detach()).reshape(-1, output.shape[-1])
                )
            )
    with torch.no_grad():
        for row in rows:
            model(**row)
    tokens = {name: torch.cat(parts) for name, parts in given.items()}
    if rank == RANKS[0]:
        return {name: 1 - torch.eq(part, 0).double().mean(0) for name, part in tokens.items()}
    return {name: part.double().mean(0) for name, part in tokens.items()}


def check(masks: MaskSet, ranks: dict[str, Tensor], share: dict[str, float]) -> None:
    assert len(masks) == len(share)
    for path, mask in masks.masks.items():
        rows = mask.flatten(1).any(1) if path.endswith("weight") else mask
        assert torch.equal(mask, rows.view(-1, *[1] * (mask.dim() - 1)).expand_as(mask))
        scores, number = ranks[path.rpartition(".")[0]], int(len(rows) * share[path])
        assert int((~rows).sum()) == number
        # Equal scores go by their index; sums over batches and over rows differ in their last bits.
        assert scores[~rows].max() <= scores[rows].min() + 1e-6


@pytest.mark.parametrize("rank", RANKS)
def test_rows_of_a_t5_go_by_what_they_give(toy: Toy, tmp_path: Path, rank: str) -> None:
    text = STAGE.replace("LISTED", T5_ENTRIES).replace("RANK", rank) + "      tie: view\n"
    recipe = toy.recipe(text, initialize="pretrained")
    assert parse_recipe(dump_recipe(recipe)) == recipe
    planned = secateur.plan(recipe).stages[0]
    run = secateur.run(recipe, tmp_path / "run", device="cpu")
    assert planned.counted_ratio == pytest.approx(run.manifest["stages"][0]["counts"]["counted_ratio"], abs=2e-3)
    masks = MaskSet.load(tmp_path / "run" / "01-prune" / "masks.safetensors")
    model, tokenizer = load_model(str(toy.start)), load_tokenizer(str(toy.start))
    rows = []
    for row in toy.rows["train"]:
        source, target = (tokenizer(row[column], return_tensors="pt") for column in ("word", "phonemes"))
        rows.append({"input_ids": source["input_ids"], "labels": target["input_ids"]})
    shares = {path: 0.4 if "Dense" in path else 0.3 if path == "lm_head.weight" else 0.5 for path in masks.masks}
    check(masks, told(model, rows, rank), shares)


@pytest.mark.parametrize("rank", RANKS)
def test_rows_and_biases_of_a_classifier_go_by_what_they_give(
    classes: Classes, trained: Path, tmp_path: Path, rank: str
) -> None:
    text = STAGE.replace("LISTED", BERT_ENTRIES).replace("RANK", rank)
    classes.run(tmp_path / "run", text, model=trained / "model")
    masks = MaskSet.load(tmp_path / "run" / "01-prune" / "masks.safetensors")
    model, tokenizer = load_model(str(trained / "model")), load_tokenizer(str(trained / "model"))
    lines = (classes.data / "train.jsonl").read_text().splitlines()
    texts = [__import__("json").loads(line)["text"] for line in lines]
    rows = [dict(tokenizer(text, return_tensors="pt", truncation=True, max_length=12)) for text in texts]
    ranks = told(model, rows, rank)
    assert any(path.endswith("bias") for path in masks.masks) and any("pooler" in path for path in masks.masks)
    check(masks, ranks, dict.fromkeys(masks.masks, 0.5))


@pytest.mark.parametrize(
    "more",
    [
        "nni_pruner: {name: activation_apoz_rank, schedule: agp, interval_steps: 2, total_times: 4}",
        "nni_pruner: {name: activation_mean_rank, schedule: linear, interval_steps: 2, total_times: 4}",
        "nni_pruner: {name: activation_mean_rank}\n      schedule: {kind: cubic, end: 0.6, every: 3}",
    ],
)
def test_they_go_step_by_step_too(toy: Toy, tmp_path: Path, more: str) -> None:
    train = "{epochs: 3, learning_rate: 5.0e-3, batch_size: 4, precision: fp32, save_every: 3}"
    text = f"""
  - name: prune
    prune:
      nni_config_list: [{{op_names_re: [".*DenseReluDense.w.*"], op_types: [Linear], sparse_ratio: 0.5}}]
      {more}
      train: {train}
"""
    toy.run(tmp_path / "run", stages=text, initialize="pretrained", keep="all")
    masks = MaskSet.load(tmp_path / "run" / "01-prune" / "masks.safetensors")
    assert len(masks) == 4
    assert all(int((~mask.any(1)).sum()) == len(mask) // 2 for mask in masks.masks.values())


def test_outside_a_run_what_the_layers_give_has_to_be_given() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Conv1d(2, 3, 2))
    entry = {"op_names": ["0"], "sparse_ratio": 0.5}
    with pytest.raises(MaskError, match=r"needs output_active of calibration batches. Gather it first"):
        secateur.from_nni(net, [entry], "activation_apoz_rank")
    statistics = {"0.weight": {"output_mean": torch.tensor([0.0, 3.0, 1.0, 5.0, 2.0, 4.0])}}
    masks = secateur.from_nni(net, [entry], "activation_mean_rank", statistics=statistics)
    assert masks.masks["0.weight"].any(1).tolist() == [False, True, False, True, False, True]
    assert torch.equal(masks.masks["0.bias"], masks.masks["0.weight"].any(1))
    for odd in ("in_channel", [2, 2], None):
        with pytest.raises(RecipeError, match=r"config_list\[0\] granularity: a channel's output judges the row"):
            secateur.from_nni(net, [entry | {"granularity": odd}], "activation_mean_rank", statistics=statistics)
