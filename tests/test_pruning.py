"""Prune stages in a run: scores that ask calibration rows get what they ask for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secateur.artifacts.checkpoint import load_live
from secateur.artifacts.loading import load_model
from secateur.errors import RecipeError
from secateur.masks.mask import MaskSet
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_card")

WEIGHTS = """
  - name: prune
    prune:
      calibration: {rows: ROWS, batch_size: 3}
      groups:
        - {role: self_attention, sparsity: 0.6, score: taylor}
        - {role: cross_attention, sparsity: 0.5, score: activation, scope: tensor}
        - {role: feed_forward, sparsity: 0.4, score: fisher}
        - {role: lm_head, sparsity: 0.5, score: SCORE, tie: TIE}
"""
UNITS = """
  - name: prune
    prune:
      calibration: {rows: 7, batch_size: 3}
      groups:
        - {unit: head, sparsity: 0.5, score: activation_mean}
        - {unit: ffn_neuron, sparsity: 0.5, score: SCORE}
  - name: cut
    cut: {rows: 3}
"""


def stages(text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def masks_of(folder: Path) -> MaskSet:
    return MaskSet.load(folder / "01-prune" / "masks.safetensors")


@pytest.mark.parametrize(
    ("score", "tie"),
    [
        ("taylor", "view"),
        ("fisher", "both"),
        ("activation", "untie"),
        ("obs", "untie"),
        ("obs", "view"),
        ("obs_fisher", "untie"),
    ],
)
def test_scores_of_calibration_rows_prune_exactly(toy: Toy, tmp_path: Path, score: str, tie: str) -> None:
    text = stages(WEIGHTS, ROWS=7, SCORE=score, TIE=tie)
    one = toy.run(tmp_path / "one", stages=text, initialize="pretrained", keep="all")
    groups = one.manifest["stages"][0]["groups"]
    for group in groups:
        assert group["num_removed"] == round(group["sparsity"] * group["num_elements"])
    masks = masks_of(tmp_path / "one")
    toy.run(tmp_path / "two", stages=text, initialize="pretrained", keep="all")
    assert masks_of(tmp_path / "two").digest() == masks.digest()
    toy.run(tmp_path / "few", stages=stages(WEIGHTS, ROWS=2, SCORE=score, TIE=tie), initialize="pretrained", keep="all")
    assert masks_of(tmp_path / "few").digest() != masks.digest(), "the rows made no difference"


OBS = """
  - name: prune
    prune:
      calibration: {rows: 7, batch_size: 3}
      groups:
        - {role: self_attention, sparsity: 0.6, score: obs}
        - {role: feed_forward, sparsity: 0.5, score: SCORE}
        - {role: lm_head, sparsity: 0.5, score: obs, tie: TIE}
"""


@pytest.mark.parametrize("tie", ["view", "untie"])
def test_obs_adjusts_what_it_judged_and_nothing_else(toy: Toy, tmp_path: Path, tie: str) -> None:
    text = stages(OBS, SCORE="magnitude", TIE=tie)
    toy.run(tmp_path / "run", stages=text, initialize="pretrained", keep="all")
    before = dict(load_model(str(toy.start)).named_parameters(remove_duplicate=False))
    place = tmp_path / "run" / "01-prune"
    after, masks = load_live(place, json.loads((place / "live.json").read_text())["live"])
    for path, parameter in after.named_parameters():
        mask = masks.masks.get(path, torch.ones_like(parameter, dtype=torch.bool))
        if masks.modes.get(path) == "hold":
            assert not parameter[~mask].any()
        changed = not torch.equal(parameter[mask], before[path][mask])
        assert changed == (("SelfAttention" in path and "bias" not in path) or path == "lm_head.weight"), path


AIMED = """
  - name: first
    prune: {groups: [{role: self_attention, sparsity: 0.3, scope: SCOPE}]}
  - name: prune
    prune:
      calibration: {rows: 7, batch_size: 3, aim: AIM}
      groups:
        - {role: self_attention, sparsity: 0.6, score: obs_fisher, scope: SCOPE}
        - {role: feed_forward, score: obs, MORE}
        - {role: lm_head, sparsity: 0.5, score: obs_fisher, scope: SCOPE, tie: untie}
"""


@pytest.mark.parametrize(
    ("scope", "more"),
    [("row", "sparsity: 0.5, scope: row"), ("tensor", "sparsity: 0.5, scope: global"), ("tensor", "pattern: '2:4'")],
)
def test_aiming_at_the_dense_model_keeps_the_numbers_and_what_is_gone(
    toy: Toy, tmp_path: Path, scope: str, more: str
) -> None:
    found = {}
    for aim in ("layer", "dense"):
        text = stages(AIMED, AIM=aim, SCOPE=scope, MORE=more)
        toy.run(tmp_path / aim, stages=text, initialize="pretrained", keep="all")
        place = tmp_path / aim / "02-prune"
        model, found[aim] = load_live(place, json.loads((place / "live.json").read_text())["live"])
        assert not any(model.get_parameter(path)[~mask].any() for path, mask in found[aim].masks.items())
    before = MaskSet.load(tmp_path / "dense" / "01-first" / "masks.safetensors").masks
    for path, mask in found["dense"].masks.items():
        assert not (mask & ~before.get(path, torch.ones_like(mask))).any()
        other = found["layer"].masks[path]
        assert torch.equal(mask.sum(1), other.sum(1)) if scope == "row" else mask.sum() == other.sum()
        assert "pattern" not in more or "DenseReluDense" not in path or torch.equal(mask, other)
    assert found["dense"].digest() != found["layer"].digest()


def test_what_goes_with_a_unit_is_not_chosen_again(toy: Toy, tmp_path: Path) -> None:
    found = []
    for aim in ("layer", "dense"):
        text = stages(UNITS_AND_OBS, AIM=aim)
        toy.run(tmp_path / aim, stages=text, initialize="pretrained", keep="all")
        found.append(masks_of(tmp_path / aim).digest())
    assert found[0] == found[1]


UNITS_AND_OBS = """
  - name: prune
    prune:
      calibration: {rows: 7, batch_size: 3, aim: AIM}
      groups:
        - {unit: ffn_neuron, sparsity: 0.5}
        - {role: feed_forward, sparsity: 0.7, score: obs_fisher, scope: tensor}
"""


@pytest.mark.parametrize("score", ["apoz", "activation_mean", "fpgm"])
def test_units_go_by_their_outputs(toy: Toy, tmp_path: Path, score: str) -> None:
    entry = toy.run(tmp_path / "run", stages=stages(UNITS, SCORE=score), initialize="pretrained", keep="all").manifest[
        "stages"
    ][-1]
    assert entry["cut"]["proof"]["relative_difference"] < 1e-5


def test_a_function_of_ones_own_gets_what_it_names(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scores.py").write_text(
        "def loud(weight, *, input_mean):\n    return weight.abs() * input_mean\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "  - name: prune\n    prune: {groups: [{role: feed_forward, sparsity: 0.5, score: 'my_scores:loud'}]}\n"
    toy.run(tmp_path / "run", stages=text, initialize="pretrained", keep="all")
    masks = masks_of(tmp_path / "run")
    sizes = [(mask.numel(), int(mask.sum())) for mask in masks.masks.values()]
    assert sum(size for size, _ in sizes) == 2 * sum(kept for _, kept in sizes)


def test_a_table_is_read_by_no_layer(toy: Toy, tmp_path: Path) -> None:
    text = stages(WEIGHTS, ROWS=7, SCORE="activation", TIE="both")
    with pytest.raises(RecipeError, match="this is none"):
        toy.run(tmp_path / "run", stages=text, initialize="pretrained", keep="all")
