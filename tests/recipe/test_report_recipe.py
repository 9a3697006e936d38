"""The report's recipe is the report."""

from __future__ import annotations

from pathlib import Path

from secateur.recipe.load import load_recipe

FILE = Path(__file__).parents[2] / "recipes" / "report" / "t5-small-billsum.yaml"


def test_the_report_as_it_stands():
    recipe = load_recipe(FILE)
    prunes = [stage.prune.groups for stage in recipe.stages if stage.prune]
    assert [[(group.role, group.sparsity, group.tie) for group in groups] for groups in prunes] == [
        [("self_attention", 0.9, None)],
        [("cross_attention", 0.4, None)],
        [("feed_forward", 0.7, None)],
        [("lm_head", 0.8, "view")],
    ]
    trains = [stage.train for stage in recipe.stages if stage.train]
    assert [train.epochs for train in trains] == [15, 15, 20, 15, 30]
    assert {(train.learning_rate, train.batch_size, train.optimizer, train.schedule) for train in trains} == {
        (2e-5, 5, "adamw", "linear")
    }
    assert [stage.kind for stage in recipe.stages] == ["train", *["prune", "train"] * 4, "evaluate"]
    assert (recipe.task.max_source_tokens, recipe.task.max_target_tokens) == (1024, 128)
    assert (recipe.evaluation.max_new_tokens, recipe.evaluation.num_beams) == (63, 5)
    assert (recipe.model, recipe.task.data.path) == ("google-t5/t5-small", "FiscalNote/billsum")


def test_validation_rows_are_not_trained_on():
    data = load_recipe(FILE).task.data
    assert (data.train, data.validation) == ("train[:95%]", "train[-5%:]")


def test_a_local_folder_replaces_the_hub():
    recipe = load_recipe(FILE, ["model=/data/t5-small", "task.data.path=/data/billsum"])
    assert (recipe.model, recipe.task.data.path) == ("/data/t5-small", "/data/billsum")


def test_it_is_short_and_commented():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 60
    assert lines[0].startswith("# ")
