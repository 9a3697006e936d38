"""NNI's config_list in a run: the masks of from_nni, NNI's own numbers as steps, ties, plans, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import secateur
from secateur.artifacts.loading import load_model
from secateur.errors import RecipeError, RunInterrupted, SecateurError
from secateur.gradual import GradualPruner
from secateur.masks.mask import MaskSet
from secateur.recipe.load import dump_recipe, parse_recipe
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_card")

TRAIN = "{epochs: 3, learning_rate: 5.0e-3, batch_size: 4, precision: fp32, dropout: 0.1, save_every: 3}"  # 12 steps
LISTED = """
        - {op_names_re: [".*SelfAttention"], op_types: [Linear], sparse_ratio: 0.7, global_group_id: attention}
        - {op_names_re: [".*DenseReluDense.w.*"], op_types: [Linear], sparse_ratio: 0.5, granularity: in_channel}
        - {op_names: [lm_head], sparse_ratio: 0.6}
"""
ROWS = '[{op_names_re: [".*DenseReluDense.w.*"], op_types: [Linear], sparse_ratio: 0.5}]'


def stages(listed: str = LISTED, *, pruner: str = "{}", more: str = "", train: str = "") -> str:
    head = f"\n  - name: prune\n    prune:\n      nni_config_list: {listed}\n      nni_pruner: {pruner}\n"
    lines = [line for line in (more, f"train: {train}" if train else "") if line]
    return head + "".join(f"      {line}\n" for line in lines)


AGP = "{name: l2_norm, schedule: agp, interval_steps: 2, total_times: 4}"
MOVEMENT = "{name: movement, warmup_step: 2, cooldown_begin_step: 8}"
SLIM = "{name: slim, training_steps: 6, regular_scale: 0.5}"
APOZ = "{name: activation_apoz_rank}"


def run(toy: Toy, folder: Path, text: str, *callbacks: Any, **options: Any) -> Any:
    return toy.run(folder, *callbacks, stages=text, initialize="pretrained", keep="all", **options)


def result(folder: Path) -> tuple[dict[str, torch.Tensor], MaskSet]:
    place = folder / "01-prune"
    return load_file(place / "model" / "model.safetensors"), MaskSet.load(place / "masks.safetensors")


@pytest.mark.parametrize("tie", ["view", "both", "untie"])
def test_a_run_lays_the_masks_of_from_nni_and_the_plan_knows_how_much(toy: Toy, tmp_path: Path, tie: Any) -> None:
    text = stages(pruner="{name: level}", more=f"tie: {tie}")
    entry = run(toy, tmp_path / "run", text).manifest["stages"][0]
    weights, masks = result(tmp_path / "run")
    recipe = toy.recipe(text, initialize="pretrained")
    assert recipe.stages[0].prune and recipe.stages[0].prune.nni_config_list
    listed = [dict(part) for part in recipe.stages[0].prune.nni_config_list]
    ours = secateur.from_nni(load_model(str(toy.start)), listed, "level", tie=tie)
    assert {path: mask.tolist() for path, mask in masks.masks.items()} == {
        path: mask.tolist() for path, mask in ours.masks.items()
    }
    assert dict(masks.modes) == dict(ours.modes)
    assert all(not weights[path][~mask].any() for path, mask in masks.masks.items() if masks.modes[path] == "hold")
    planned = secateur.plan(recipe).stages[0]
    assert planned.counted_ratio == pytest.approx(entry["counts"]["counted_ratio"], abs=2e-3)
    assert {group.role: group.num_removed for group in planned.groups if group.exact} == {
        group["role"]: group["num_removed"] for group in entry["groups"]
    }
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("pruner", "steps"),
    [(AGP, {2: 1 - 0.75**3, 4: 1 - 0.5**3, 6: 1 - 0.25**3, 8: 1.0}), (MOVEMENT, None), (SLIM, {6: 1.0})],
    ids=["agp", "movement", "slim"],
)
def test_nnis_numbers_are_steps_and_a_broken_run_ends_with_the_same_bits(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruner: str, steps: dict[int, float] | None
) -> None:
    seen: dict[int, float] = {}
    passed: list[int] = []
    stop = 5  # two steps after a resume point, in the midst of every schedule
    original = GradualPruner.prune

    def prune(self: GradualPruner, share: float) -> MaskSet:
        seen[passed[-1] if passed else 0] = share
        return original(self, share)

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            passed.append(state.global_step)

    text = stages(ROWS, pruner=pruner, train=TRAIN)
    with monkeypatch.context() as patch:
        patch.setattr(GradualPruner, "prune", prune)
        run(toy, tmp_path / "whole", text, Count())
    expected = steps or {step: 1 - (1 - (step - 2) / 6) ** 3 for step in range(3, 9)}
    assert seen == pytest.approx(expected)
    passed.clear()
    with pytest.raises(RunInterrupted):
        run(toy, tmp_path / "broken", text, Count(), should_stop=lambda: len(passed) >= stop)
    run(toy, tmp_path / "broken", text, resume=True)
    (mine, masks), (theirs, others) = result(tmp_path / "broken"), result(tmp_path / "whole")
    assert masks.digest() == others.digest()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for path, mask in masks.masks.items():
        assert int((~mask.any(1)).sum()) == mask.shape[0] // 2 and masks.sparsity(path) == 0.5
        assert not mine[path][~mask].any()


@pytest.mark.parametrize("tie", ["view", "untie"])
def test_a_head_goes_step_by_step(toy: Toy, tmp_path: Path, tie: Any) -> None:
    agp = AGP.replace("l2_norm", "level")
    entry = run(toy, tmp_path / "run", stages(pruner=agp, more=f"tie: {tie}", train=TRAIN)).manifest["stages"][0]
    weights, masks = result(tmp_path / "run")
    assert masks.sparsity("lm_head.weight") == pytest.approx(0.6, abs=1e-3)
    assert masks.modes["lm_head.weight"] == ("view" if tie == "view" else "hold")
    assert [group["tie"] for group in entry["groups"] if group["role"] == "lm_head"] == [tie]
    (attention,) = (group for group in entry["groups"] if group["role"] == "self_attention")
    assert attention["num_removed"] == int(0.7 * attention["num_elements"])
    assert all(not weights[path][~mask].any() for path, mask in masks.masks.items() if masks.modes[path] == "hold")


def test_our_own_schedule_goes_with_nnis_pruners(toy: Toy, tmp_path: Path) -> None:
    text = stages(ROWS, pruner="{name: taylor}", more="schedule: {kind: linear, end: 0.6, every: 3}", train=TRAIN)
    run(toy, tmp_path / "run", text)
    _, masks = result(tmp_path / "run")
    assert len(masks) == 4 and all(masks.sparsity(path) == 0.5 for path in masks.masks)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (stages("[]"), "nni_config_list: must be a list of at least one mapping"),
        (stages('[{op_types: [Linear], sparse_ratio: 0.5, quant_dtype: int8}]'), "0.quant_dtype: quantises, and this"),
        (stages('[{op_types: [Linear], sparse_rato: 0.5}]'), 'sparse_rato: unknown key. Did you mean "sparse_ratio"?'),
        (stages(ROWS, more="groups: [{role: norm, sparsity: 0.1}]"), "and groups exclude each other"),
        (stages(ROWS, more="preset: asymmetric"), "and preset exclude each other"),
        (stages(ROWS, pruner="{name: levl}"), 'no "levl". Did you mean "level"?'),
        (stages(ROWS, pruner="{name: lottery_ticket}"), "lottery_ticket is a schedule around a pruner"),
        (stages(ROWS, pruner="{name: activation_apoz_rank, activation: gelu}"), 'activation: no "gelu".'),
        (stages(ROWS, pruner="{name: level, activation: relu}"), "activation: cannot act with level"),
        (stages(ROWS, pruner="{name: activation_mean_rank, training_steps: 3}"), "write calibration"),
        (
            stages("[{op_types: [Linear], sparse_ratio: 0.5, granularity: in_channel}]", pruner=APOZ),
            "nni_config_list.0.granularity: a channel's output judges the row of weights",
        ),
        (stages(ROWS, pruner="{name: agp}"), "agp is a schedule around a pruner"),
        (stages(ROWS, pruner=AGP), "train: is missing: this pruner prunes while it trains"),
        (stages(ROWS, pruner="{schedule: agp, total_times: 3}", train=TRAIN), "interval_steps: is missing: agp needs"),
        (stages(ROWS, pruner="{interval_steps: 3}"), "interval_steps: cannot act with level"),
        (stages(ROWS, pruner="{name: slim, schedule: agp, training_steps: 2}", train=TRAIN), "slim says itself when"),
        (stages(ROWS, pruner="{name: taylor, training_steps: 3}"), "write calibration"),
        (stages(ROWS, pruner="{name: movement, warmup_step: 9, cooldown_begin_step: 8}", train=TRAIN), "9 is not"),
        (stages(ROWS, pruner=AGP, train=TRAIN, more="schedule: {every: 3}"), "schedule: cannot act: nni_pruner says"),
        (stages(ROWS, more="calibration: {rows: 3}"), "calibration: cannot act: level asks no rows"),
        (stages(ROWS, train=TRAIN), "one_shot prunes before any training"),
        (
            stages("[{op_types: [Linear], sparse_threshold: 0.1}]", pruner=MOVEMENT, train=TRAIN),
            "leaves open how much movement removes",
        ),
        ("\n  - {name: a, prune: {}}", "groups: is missing. Keys here"),
        ("\n  - {name: a, prune: {groups: []}}", "groups: must not be empty"),
        ("\n  - {name: a, prune: {tie: view, groups: [{role: lm_head, sparsity: 0.1}]}}", "tie: cannot act without"),
        (
            "\n  - {name: a, prune: {nni_pruner: {name: fpgm}, groups: [{role: norm, sparsity: 0.1}]}}",
            "nni_pruner: cannot act without nni_config_list",
        ),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_mean_is_refused_without_its_model(toy: Toy, text: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        toy.recipe(text, initialize="pretrained")
    assert told in str(caught.value)


def test_the_precision_of_another_machine_asks_no_rows(toy: Toy) -> None:
    saved = toy.recipe(stages(ROWS, more="calibration: {rows: 512, precision: bf16}"), initialize="pretrained")
    assert saved.stages[0].prune and saved.stages[0].prune.calibration.precision == "bf16"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (stages(), "lm_head.weight is one tensor with others (tied)"),
        (stages(ROWS, more="tie: view"), "tie: view cannot act"),
        (stages("[{op_names: [lm_hed], sparse_ratio: 0.5}]"), "prune.nni_config_list[0] op_names: no module 'lm_hed'"),
        (stages('[{op_names_re: ["encoder"], sparse_ratio: 0.5}]'), "modules that have no weights to prune, encoder ("),
        (stages("[{op_types: [T5LayerNorm], sparse_ratio: 0.5}]"), "(T5LayerNorm) first"),
        (
            stages("[{op_types: [Embedding], sparse_ratio: 0.5}]", pruner=AGP, train=TRAIN, more="tie: untie"),
            "what went may come back only in the matrices of linear layers",
        ),
        (stages("[{op_names: [lm_head], sparse_ratio: 0.5}]", pruner=SLIM, train=TRAIN, more="tie: view"), "slim's"),
        (stages("[{op_names: [lm_head], sparse_ratio: 0.5}]", pruner=APOZ, more="tie: both"), "not the table"),
        (stages("[{op_types: [Embedding], sparse_ratio: 0.5}]", pruner=APOZ, more="tie: untie"), "this is none"),
    ],
)
def test_what_does_not_fit_the_model_is_told_by_the_plan(toy: Toy, text: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        secateur.plan(toy.recipe(text, initialize="pretrained"))
    assert told in str(caught.value)


def test_a_training_that_is_too_short_is_told(toy: Toy, tmp_path: Path) -> None:
    text = stages(ROWS, pruner=AGP.replace("total_times: 4", "total_times: 40"), train=TRAIN)
    with pytest.raises(SecateurError, match="the last weights go after 80 steps"):
        run(toy, tmp_path / "run", text)


def test_slims_factors_end_in_the_weights() -> None:
    from secateur.masks.view import MaskedLinear

    layer = MaskedLinear(torch.nn.Linear(4, 3), torch.ones(3, 4).bool())
    factors, rows = torch.tensor([0.5, 1.0, 2.0]).view(3, 1).expand(3, 4), torch.randn(2, 4)
    plain = layer.weight.detach().clone()
    layer.factors = factors
    expected = torch.nn.functional.linear(rows, plain * factors, layer.bias)
    torch.testing.assert_close(layer(rows), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(rows), expected)
