"""Whole runs of other families than T5, and the verbs on folders with gaps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
)

import secateur
from nets import make_layer_normed, masks_of
from secateur.artifacts.checkpoint import save_plain
from secateur.artifacts.loading import load_model
from secateur.errors import RecipeError
from secateur.exports.folder import ExportError
from secateur.masks.hold import attach
from secateur.planning import make_plan
from toy import ROOT, VOCABULARY, Toy

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
KINDS = {
    "bart": (BartConfig, BartForConditionalGeneration),
    "mbart": (MBartConfig, MBartForConditionalGeneration),
}
TRAIN = "{epochs: 1, learning_rate: 2.0e-3, batch_size: 4, precision: fp32}"
STAGES = f"""
  - name: weights
    prune:
      groups:
        - {{role: self_attention, sparsity: 0.5, score: activation, scope: tensor}}
        - {{role: lm_head, sparsity: 0.3, tie: view}}
  - name: units
    prune:
      groups:
        - {{unit: head, sparsity: 0.5, score: taylor}}
        - {{unit: ffn_neuron, sparsity: 0.5, score: activation_mean}}
        - {{unit: hidden_dim, sparsity: 0.25, score: l2_norm}}
        - {{unit: layer, stack: decoder, sparsity: 0.5, score: spacing}}
  - name: again
    train: {TRAIN}
  - name: cut
    cut: {{}}
  - name: retrain
    train: {TRAIN}
  - name: ship
    export: {{to: ctranslate2, int8: false, rows: 4}}
"""


def toy_of(kind: str, toy: Toy, place: Path) -> Toy:
    """The toy's rows for another family."""
    config_class, model_class = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model_class(config_class(**SIZES)).save_pretrained(place / "start")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "recipes" / "tiny" / "start" / name, place / "start" / name)
    return Toy(place / "start", toy.data, toy.rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run(kind: str, toy: Toy, tmp_path: Path, no_card: None) -> None:
    other = toy_of(kind, toy, tmp_path)
    done = other.run(tmp_path / "run", stages=STAGES, initialize="pretrained", keep="all")
    stages = {stage["name"]: stage for stage in done.manifest["stages"]}
    proof, left = stages["cut"]["cut"]["proof"], stages["cut"]["cut"]["left"]
    assert proof["holds"] and not stages["cut"]["cut"]["plain"]
    assert left["dims"] == 18 and left["neurons"] == {"encoder": [10, 10], "decoder": [14]}
    assert stages["ship"]["export"]["parity"]["largest_difference"] < 1e-5
    assert stages["again"]["metrics"] == stages["cut"]["metrics"]  # measured from the folders, by the engine
    planned = {stage.name: stage for stage in make_plan(other.recipe(STAGES), str(other.start)).stages}
    assert (
        planned["cut"].num_parameters
        == secateur.inspect(str(tmp_path / "run" / "05-retrain"))["counts"]["num_parameters"]
    )
    for name in ("weights", "units", "cut"):
        assert planned[name].counted_ratio == pytest.approx(stages[name]["counts"]["counted_ratio"], abs=0.02)
    assert done.manifest["ragged"]
    secateur.load(tmp_path / "run")


def test_lengths_beyond_the_positions_are_refused(toy: Toy, tmp_path: Path) -> None:
    other = toy_of("bart", toy, tmp_path)
    recipe = other.recipe(STAGES).model_copy(deep=True)
    long = recipe.model_copy(update={"task": recipe.task.model_copy(update={"max_source_tokens": 41})})
    with pytest.raises(
        RecipeError, match=r"task\.max_source_tokens: 41 is more than this model has positions for \(40\)"
    ):
        make_plan(long, str(other.start))
    make_plan(long, str(toy.start))  # T5 has no last position


@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_the_verbs_on_a_folder_with_gaps(kind: str, tmp_path: Path) -> None:
    model = make_layer_normed(kind)
    masks = masks_of(model, ["hidden_dim", "layer"])
    (tmp_path / "stage").mkdir()
    with attach(model, masks):
        save_plain(model, _tokenizer(), tmp_path / "stage" / "model", masks=masks)
    masks.save(tmp_path / "stage" / "masks.safetensors")
    folder = tmp_path / "stage" / "model"
    reason = "names classes" if kind == "bert" else "Cut it first"
    with pytest.raises(ExportError, match=reason):
        secateur.export(folder, tmp_path / "none", to="ctranslate2")
    secateur.pack(folder, tmp_path / "model.packed")
    given = {"input_ids": torch.tensor([[5, 6, 7]])} | (
        {} if kind == "bert" else {"decoder_input_ids": torch.tensor([[0, 4]])}
    )
    with torch.no_grad():
        wanted = load_model(str(folder))(**given).logits
        assert torch.equal(secateur.load(tmp_path / "model.packed")(**given).logits, wanted)
        found = secateur.cut(folder, tmp_path / "cut")
        torch.testing.assert_close(secateur.load(tmp_path / "cut")(**given).logits, wanted)
    assert found["proof"]["holds"] and found["left"]["dims"] == 18 and not found["plain"]
    assert "secateur_gaps" not in json.loads((tmp_path / "cut" / "config.json").read_text())


def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ROOT / "recipes" / "tiny" / "start")
