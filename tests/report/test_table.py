"""The rows that sum a run up, and what each pruning cost."""

from __future__ import annotations

import math

import pytest

from secateur.report import table


def test_the_summary_is_dense_pruned_retrained_and_what_was_measured_after(manifest):
    rows = table.summary_rows(manifest)
    assert [(row.label, row.stage) for row in rows] == [
        ("dense", "dense"),
        ("pruned", "lm-head"),
        ("retrained", "retrain-lm-head"),
        ("final", "final"),
    ]
    assert [row.split for row in rows] == ["validation", "validation", "validation", "test"]
    assert rows[2].counts["counted_ratio"] == 0.2626112


def test_the_given_model_is_dense_where_no_training_comes_before_pruning(manifest):
    manifest["stages"] = manifest["stages"][1:3]
    assert [row.stage for row in table.summary_rows(manifest)] == ["given", "self-attention", "retrain-self-attention"]


def test_summaries_of_runs_that_lack_something(manifest, interrupted, trained_only):
    assert [row.label for row in table.summary_rows(interrupted)] == ["dense", "pruned"]
    assert [row.label for row in table.summary_rows(trained_only)] == ["given", "trained"]
    assert table.summary_rows({"stages": [], "dense": None}) == []
    assert table.summary_rows({}) == []
    only_measured = manifest | {"stages": manifest["stages"][-1:]}
    assert [row.label for row in table.summary_rows(only_measured)] == ["given", "final"]


def test_the_main_metric_is_the_first_that_has_a_direction(manifest):
    assert list(manifest["dense"]["metrics"]) == ["mean_length", "rougeLsum"]
    assert table.main_metric(manifest) == "rougeLsum"
    assert table.main_metric({"stages": []}) is None


def test_every_pruning_has_its_drop_and_what_is_left(manifest):
    found = table.costs(manifest)
    assert [cost.stage for cost in found] == ["self-attention", "cross-attention", "feed-forward", "lm-head"]
    for cost in found:
        before, pruned, retrained = (figure["value"] for figure in (cost.before, cost.pruned, cost.retrained))
        assert cost.drop == pytest.approx((before - pruned) / before)
        assert cost.left == pytest.approx((before - retrained) / before)
    assert found[0].before["value"] == 0.2379  # the trained dense model, not the given one
    assert found[1].before["value"] == 0.2311  # what retraining reached, not what pruning left
    assert table.costliest(found) is found[1]


def test_lower_is_better_turns_the_sign(manifest):
    for entry in table.all_entries(manifest):
        entry["metrics"]["rougeLsum"]["higher_is_better"] = False
    assert all(cost.drop < 0 for cost in table.costs(manifest))


def test_prunings_are_not_compared_across_splits_or_without_figures(manifest):
    for entry in manifest["stages"]:
        if entry["name"] == "cross-attention":
            entry["metrics"] = {}
    assert "cross-attention" not in [cost.stage for cost in table.costs(manifest)]
    manifest["stages"][1]["split"] = "test"
    assert "self-attention" not in [cost.stage for cost in table.costs(manifest)]


def test_an_export_or_a_stage_without_training_is_no_retraining(manifest):
    def entry(kind, value):
        figure = {"value": value, "higher_is_better": True}
        return {"name": kind, "kind": kind, "split": "validation", "metrics": {"rougeLsum": figure}}

    stages = [entry("train", 0.40), entry("prune", 0.10), entry("train", 0.38), entry("export", 0.20)]
    (cost,) = table.costs(manifest | {"stages": stages})
    assert cost.retrained["value"] == 0.38 and cost.left == pytest.approx(0.05)
    stages = [entry("train", 0.40), entry("export", 0.20), entry("prune", 0.10), entry("cut", 0.09)]
    (cost,) = table.costs(manifest | {"stages": stages})
    assert cost.before["value"] == 0.40 and cost.retrained is None
    assert table.summary_rows(manifest | {"stages": stages})[0].stage == "train"


def test_a_pruning_without_retraining_has_nothing_left_to_tell(interrupted):
    (cost,) = table.costs(interrupted)
    assert cost.drop is not None
    assert cost.retrained is None
    assert cost.left is None


def test_no_drop_from_nothing_or_to_no_number():
    better = {"value": 0.0, "higher_is_better": True}
    assert table.relative_drop(better, {"value": 1.0}) is None
    assert table.relative_drop(better | {"value": 1.0}, {"value": math.nan}) is None
    assert table.costliest([]) is None
