"""The plan tells from config.json what a run then does, and refuses in one error all that it could not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from secateur import measure, pipeline
from secateur.errors import CheckpointError, RecipeError
from secateur.planning import Plan, make_plan
from secateur.recipe.load import load_recipe, parse_recipe
from toy import ROOT, Toy

T5_SMALL = {
    "model_type": "t5",
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
    "decoder_start_token_id": 0,
}


@pytest.fixture(scope="module")
def t5_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5-small")
    (folder / "config.json").write_text(json.dumps(T5_SMALL))
    return folder


def test_the_reports_figures(t5_small: Path) -> None:
    plan = make_plan(
        load_recipe(ROOT / "recipes" / "report" / "t5-small-billsum.yaml"), str(t5_small), train_rows=18_949
    )
    assert plan.family == "t5" and plan.dense_parameters == 60_506_624
    prunes = [stage for stage in plan.stages if stage.kind == "prune"]
    assert [round(stage.counted_ratio, 7) for stage in prunes] == [0.8128367, 0.7712448, 0.4801019, 0.2626112]
    assert all(group.exact for stage in prunes for group in stage.groups)
    last = plan.stages[-1]
    assert round(last.stored_ratio_packed, 4) == 0.4801 and round(last.stored_ratio_plain, 4) == 0.5345
    assert last.num_parameters == 60_506_624 + 32128 * 512 and last.num_bytes == 4 * last.num_parameters
    assert round(last.num_bytes / 1e6) == 308 and round(plan.stages[0].num_bytes / 1e6) == 242
    # 18,949 rows in batches of 5 are 3,790 steps an epoch
    steps = [stage.steps for stage in plan.stages if stage.kind == "train"]
    assert steps == [15 * 3790, 15 * 3790, 20 * 3790, 15 * 3790, 30 * 3790]
    assert [group.num_removed for stage in prunes for group in stage.groups] == [
        11_324_621,
        2_516_582,
        17_616_077,
        13_159_629,
    ]


def plan_of(stages: str, folder: Path, *, train_rows: int | None = None, head: str = "") -> Plan:
    text = f"""
version: 1
model: {folder}
{head}task: {{data: {{path: ./rows}}, source: a, target: b, max_source_tokens: 8, max_target_tokens: 8}}
evaluation: {{metrics: [per], max_new_tokens: 4}}
stages:
{stages}
"""
    return make_plan(parse_recipe(text), str(folder), train_rows=train_rows)


def prune(*groups: str, name: str = "p") -> str:
    return f"  - name: {name}\n    prune: {{groups: [{', '.join(groups)}]}}\n"


def test_every_fault_of_every_stage_is_told_at_once(t5_small: Path) -> None:
    stages = (
        prune("{role: self_attention, sparsity: 0.5, layers: [9]}", name="nothing")
        + prune(
            "{role: feed_forward, sparsity: 0.5}",
            "{role: feed_forward, stack: encoder, sparsity: 0.2}",
            name="overlap",
        )
        + prune("{role: lm_head, sparsity: 0.5}", name="tie-missing")
        + prune("{role: cross_attention, sparsity: 0.5, min_keep: 200000}", name="caps")
        + prune("{role: cross_attention, sparsity: 0.5, block: [7, 4]}", name="blocks")
        + prune("{role: cross_attention, pattern: '2:7'}", name="pattern")
        + prune("{role: embedding, sparsity: 0.1, tie: view}", name="embedding-view")
        + prune("{role: lm_head, sparsity: 0.1, tie: view}", name="view")
        + prune("{role: lm_head, sparsity: 0.2, tie: both}", name="another-policy")
        + "  - name: half\n    train: {epochs: 1, learning_rate: 1.0e-3, batch_size: 1, weights: bf16}\n"
    )
    with pytest.raises(RecipeError) as caught:
        plan_of(stages, t5_small)
    text = str(caught.value)
    assert text.startswith("The recipe does not fit its model:\n") and caught.value.exit_code == 2
    for name, expected in {
        "nothing": "layers",
        "overlap": "overlaps groups.0 in 12 tensors",
        "tie-missing": "view (the head is masked",
        "caps": "cannot be reached",
        "blocks": "cannot be cut into blocks of 7 x 4",
        "pattern": "multiple of 7 long",
        "embedding-view": "masks the head alone",
        "another-policy": "tie: both contradicts tie: view of an earlier stage",
        "half": "bf16 cannot act under tie: view",
    }.items():
        line = next((line for line in text.splitlines() if f"stages.{name}." in line), "")
        assert expected in line, (name, line)
    assert "stages.view." not in text  # and nothing that is right is called wrong


def test_a_tie_that_cannot_act(tmp_path: Path) -> None:
    v1_1 = T5_SMALL | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(v1_1))
    with pytest.raises(RecipeError, match="tie: view cannot act: this model's head is a table of its own"):
        plan_of(prune("{role: lm_head, sparsity: 0.5, tie: view}"), tmp_path)
    plan = plan_of(prune("{role: lm_head, sparsity: 0.5}"), tmp_path)
    assert plan.stages[0].groups[0].num_removed == 32128 * 512 // 2
    assert plan.stages[0].stored_ratio_packed == plan.stages[0].stored_ratio_plain == plan.stages[0].counted_ratio


def test_min_keep_and_rows_of_unequal_size(t5_small: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be reached: max_sparsity and min_keep"):
        plan_of(prune("{role: cross_attention, sparsity: 0.5, unit: row, min_keep: 300}"), t5_small)
    # wi has rows of 512 and wo of 2048 values: which rows go decides how many values do
    assert not plan_of(prune("{role: feed_forward, sparsity: 0.5, unit: row}"), t5_small).stages[0].groups[0].exact
    assert (
        plan_of(prune("{role: feed_forward, sparsity: 0.5, unit: row, scope: tensor}"), t5_small)
        .stages[0]
        .groups[0]
        .exact
    )


def test_sparsity_is_cumulative(t5_small: Path) -> None:
    group = "{{role: self_attention, sparsity: {}}}"
    plan = plan_of("".join(prune(group.format(share), name=f"p{share}") for share in (0.25, 0.75, 0.5)), t5_small)
    total = 48 * 512 * 512
    removed = [stage.groups[0].num_removed for stage in plan.stages]
    assert removed == [total // 4, total * 3 // 4, total * 3 // 4]  # what is gone stays gone


def test_untie_makes_the_model_grow_and_both_does_not(t5_small: Path) -> None:
    untied = plan_of(prune("{role: lm_head, sparsity: 0.5, tie: untie}"), t5_small).stages[0]
    both = plan_of(prune("{role: lm_head, sparsity: 0.5, tie: both}"), t5_small).stages[0]
    head = 32128 * 512
    assert untied.num_parameters == 60_506_624 + head and both.num_parameters == 60_506_624
    assert untied.counted_ratio == both.counted_ratio == both.stored_ratio_plain == both.stored_ratio_packed
    assert untied.stored_ratio_plain == pytest.approx((60_506_624 + head / 2) / 60_506_624)


def test_nothing_to_evaluate_before_a_training(t5_small: Path) -> None:
    stages = (
        "  - name: look\n    evaluate: {num_beams: 2}\n"
        "  - name: t\n    train: {epochs: 1, learning_rate: 1.0e-3, batch_size: 1}\n"
    )
    assert plan_of(stages, t5_small).stages[0].counted_ratio == 1.0
    with pytest.raises(RecipeError, match=r"stages\.look: a model that starts at random"):
        plan_of(stages, t5_small, head="initialize: random\n")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plan_of(prune("{role: feed_forward, sparsity: 0.5}"), tmp_path)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs"),
    [(13, 2, 2, 4), (13, 2, 3, 2), (1, 4, 2, 3), (13, 5, 4, 1.5), (8, 4, 2, 1)],
)
def test_steps_are_the_trainers(
    t5_small: Path, rows: int, batch: int, accumulation: int, epochs: float, tmp_path: Path
) -> None:
    """What transformers itself makes of these settings."""
    settings = f"epochs: {epochs}, learning_rate: 1.0e-3, batch_size: {batch}, accumulation: {accumulation}"
    planned = plan_of(f"  - name: t\n    train: {{{settings}}}\n", t5_small, train_rows=rows).stages[0].steps
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], num_train_epochs=epochs,
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=torch.utils.data.TensorDataset(torch.zeros(rows)))
    assert trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())[-1] == planned


RUNS = ["units.yaml", "tie-both.yaml", "tie-untie.yaml"]


def test_the_tiny_recipes_of_these_tests_are_all_but_the_report() -> None:
    assert sorted(file.name for file in (ROOT / "recipes" / "tiny").glob("*.yaml")) == sorted([*RUNS, "report.yaml"])


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize("name", RUNS)
def test_the_plan_tells_what_a_run_does(toy: Toy, tmp_path: Path, name: str) -> None:
    smaller = ["task.data.train='train[:32]'", "task.data.validation='validation[:4]'"]
    result = pipeline.run(ROOT / "recipes" / "tiny" / name, tmp_path / "run", overrides=smaller, device="cpu")
    plan = measure.plan(result.folder)
    exact = 0
    for planned, done in zip(plan.stages, result.manifest["stages"], strict=True):
        assert (planned.name, planned.kind) == (done["name"], done["kind"])
        if planned.kind == "train":
            assert planned.steps == done["train"]["steps"]
        for group, found in zip(planned.groups, done.get("groups", []), strict=True):
            assert (group.num_weights, group.num_elements) == (found["num_weights"], found["num_elements"])
            if group.exact:
                exact += 1
                assert group.num_removed == found["num_removed"]
        assert planned.num_parameters == done["counts"]["num_parameters"]
        if all(group.exact for stage in plan.stages for group in stage.groups):
            assert planned.counted_ratio == done["counts"]["counted_ratio"]
            assert planned.stored_ratio_plain == pytest.approx(done["counts"]["stored_ratio"], abs=1e-4)
    assert exact == {"units.yaml": 4, "tie-both.yaml": 1, "tie-untie.yaml": 1}[name]
